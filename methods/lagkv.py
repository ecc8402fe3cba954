"""LagKV (Liang et al. 2025, arXiv 2504.04704; code AI-Lab-China-Merchants-Bank/LagKV): unlike what comes next stays.

After the first tokens the prompt is cut into partitions of `lag` tokens. The channels of each entry's key and value are
scaled by the smallest and the largest number of the next partition there; the more they then differ among themselves,
the more the entry is worth. Entries rank within their partition, so every partition keeps equally many, but for one.
The last whole partition, which nothing follows, and the tokens after it stay.
"""

from dataclasses import dataclass

from pvcbench.policy import Method, OutOfReach, UserError, torch


@dataclass(frozen=True)
class LagKV(Method):
    """`sinks` first tokens stay; a prompt of fewer than two partitions keeps them and its newest entries."""

    sinks: int = 4
    lag: int = 128
    decodes = ("grow",)
    protocols = ("generate", "continuation")

    def __post_init__(self):
        if self.sinks < 0 or self.lag < 2:
            raise UserError("lagkv: sinks must be 0 or more and lag 2 or more")

    def resolve(self, budget, shape):
        stay = sum(self.protects(budget, shape))
        if budget is not None and budget < stay and budget < shape.tokens:
            raise OutOfReach(f"below the {stay} first and last entries of this prompt that LagKV always keeps")
        return self

    def protects(self, budget, shape):
        sinks = min(self.sinks, shape.tokens)
        parts, rest = divmod(shape.tokens - sinks, self.lag)
        return sinks, self.lag + rest if parts > 1 else 0

    def scores(self, seen):
        wide = torch.promote_types(seen.keys.dtype, torch.float32)
        parts = (seen.positions.shape[-1] - self.sinks) // self.lag
        if parts < 2:
            return seen.positions.to(wide)
        scores = torch.zeros_like(seen.positions, dtype=wide)
        worth = sum(unlike_next(self._parts(tensor.to(wide), parts)) for tensor in (seen.keys, seen.values))
        ranks = worth.argsort(dim=-1, stable=True).argsort(-1) / self.lag
        scores[..., self.sinks : self.sinks + (parts - 1) * self.lag] = ranks.flatten(-2)
        return scores

    def _parts(self, tensor, parts):
        """Keys or values as [batch, kv_heads, partitions, lag, dim]."""
        return tensor[:, :, self.sinks : self.sinks + parts * self.lag].unflatten(2, (parts, self.lag))


def unlike_next(parts):
    """For all partitions but the last, the softmax of how far each entry's scaled channels lie apart."""
    low, high = parts[:, :, 1:].aminmax(dim=-2, keepdim=True)
    span = high - low
    scaled = torch.where(span > 0, (parts[:, :, :-1] - low) / span, 0.0)  # a constant channel tells nothing
    return scaled.std(-1).softmax(-1)
