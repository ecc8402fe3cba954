"""Expected Attention (kvpress' ExpectedAttentionPress, Apache-2.0): what queries to come are expected to look at.

The prompt's queries before rotary embedding, first tokens left out, are taken as Gaussian; turned by the mean rotation
of the next `horizon` positions, the expected attention to a key is the softmax of mu.k/sqrt(d) + k'Sk/(2d). It is
averaged over a KV head's query heads and multiplied by the value's norm. The scale is 1/sqrt(d), as there.
"""

from dataclasses import dataclass

from pvcbench.policy import Method, torch


@dataclass(frozen=True)
class ExpectedAttention(Method):
    """`sinks` first tokens always stay and say nothing of the queries; `epsilon` is added before the value norm."""

    horizon: int = 512
    sinks: int = 4
    covariance: bool = True
    value_norm: bool = True
    epsilon: float = 0.0
    needs_queries = True
    decodes = ("grow",)
    protocols = ("generate", "continuation")

    def protects(self, budget, shape):
        return min(self.sinks, shape.tokens), 0

    def scores(self, seen):
        batch, kv_heads, entries, dim = seen.keys.shape
        if entries == 1:  # nothing to rank
            return torch.zeros_like(seen.positions, dtype=torch.float32)
        queries = seen.queries[:, :, min(self.sinks, entries - 1) :].to(
            torch.promote_types(seen.keys.dtype, torch.float32)
        )
        mean = queries.mean(2, keepdim=True)
        ahead = seen.ahead(self.horizon).to(mean.dtype)
        keys = seen.keys.to(mean.dtype).repeat_interleave(mean.shape[1] // kv_heads, 1)
        logits = (keys @ (mean @ ahead).mT)[..., 0] / dim**0.5
        if self.covariance:
            centred = (queries - mean) @ ahead
            spread = centred.mT @ centred / centred.shape[2]
            logits = logits + ((keys @ spread) * keys).sum(-1) / (2 * dim)
        first = min(self.sinks, entries - 1)
        expected = torch.zeros_like(logits)
        expected[..., first:] = logits[..., first:].softmax(-1)
        scores = expected.view(batch, kv_heads, -1, entries).mean(2)
        return (scores + self.epsilon) * seen.values.norm(dim=-1) if self.value_norm else scores
