"""ChunkKV (Liu et al. 2025, arXiv 2502.00299): whole pieces of text stay, so that what is kept can be read.

The scores of another method are summed over the heads of a layer and averaged over chunks of neighbouring tokens; each
token takes its chunk's score, and all heads keep the same chunks. Of the last chunk that is kept its first tokens stay
where not all of them fit, so that a budget is met exactly.
"""

from dataclasses import dataclass, field

from methods.snapkv import SnapKV
from pvcbench.policy import Method, UserError, torch


@dataclass(frozen=True)
class ChunkKV(Method):
    """Scores of `base` by `chunk` tokens, counted from the first that the base does not protect."""

    base: Method = field(default_factory=SnapKV)
    chunk: int = 20
    decodes = ("grow",)
    protocols = ("generate", "continuation")
    needs_queries = property(lambda self: self.base.needs_queries)
    needs_rows = property(lambda self: self.base.needs_rows)
    needs_plain_keys = property(lambda self: self.base.needs_plain_keys)

    def __post_init__(self):
        if self.chunk < 1:
            raise UserError("chunkkv: chunk must be 1 or more")
        if self.base.prunes or self.base.own_budget is not None or self.base.positions != "original":
            raise UserError("chunkkv: base must be a method that scores a whole prefill at original positions")

    def resolve(self, budget, shape):
        self.base.resolve(budget, shape)
        return self

    def row_weights(self, shape, layer):
        return self.base.row_weights(shape, layer)

    def protects(self, budget, shape):
        return self.base.protects(budget, shape)

    def accumulate(self, seen):
        return self.base.accumulate(seen)

    def scores(self, seen):
        worth, (first, last) = self.base.scores(seen), self.base.protects(None, seen.shape)
        tokens = worth.shape[-1] - first - last
        scores = torch.zeros_like(worth)
        if tokens > 0:
            summed = worth.sum(1, keepdim=True)[..., first : first + tokens]
            padded = torch.nn.functional.pad(summed, (0, -tokens % self.chunk)).unflatten(-1, (-1, self.chunk))
            sizes = torch.full(padded.shape[-2:-1], self.chunk).clamp(max=tokens)
            sizes[-1] = tokens - self.chunk * (len(sizes) - 1)
            means = padded.sum(-1) / sizes.to(padded)
            scores[..., first : first + tokens] = means.repeat_interleave(self.chunk, -1)[..., :tokens]
        return scores
