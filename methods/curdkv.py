"""CurDKV (Sengupta et al. 2025, arXiv 2509.15038), as kvpress' CURPress: long keys with long values, among neighbours.

The squared norms of an entry's key and of its value, each as a share of its block of neighbours, are multiplied. With
`projection` both are first made narrower by one Gaussian matrix, as approximate leverage scores are.
"""

from dataclasses import dataclass

from methods.gaussian import gaussian
from pvcbench.policy import Method, OutOfReach, UserError, torch


@dataclass(frozen=True)
class CurDKV(Method):
    """`sinks` first tokens stay; `block` neighbours share 1; `projection` is the width of the matrix, 0 for none."""

    sinks: int = 4
    block: int = 16
    projection: int = 0
    decodes = ("grow",)
    protocols = ("generate", "continuation")

    def __post_init__(self):
        if self.sinks < 0 or self.block < 1 or self.projection < 0:
            raise UserError("curdkv: sinks and projection must be 0 or more and block 1 or more")

    def resolve(self, budget, shape):
        if budget is not None and budget < min(self.sinks, shape.tokens):
            raise OutOfReach(f"below the {self.sinks} first entries that CurDKV always keeps")
        return self

    def protects(self, budget, shape):
        return min(self.sinks, shape.tokens), 0

    def scores(self, seen):
        wide = torch.promote_types(seen.keys.dtype, torch.float32)
        keys, values = seen.keys.to(wide), seen.values.to(wide)
        if self.projection:
            width = max(keys.shape[-1], values.shape[-1])
            matrix = gaussian(seen, width, self.projection).to(wide)[:, None] / self.projection**0.5
            keys, values = keys @ matrix[:, :, : keys.shape[-1]], values @ matrix[:, :, : values.shape[-1]]
        return self._shares(keys) * self._shares(values)

    def _shares(self, vectors):
        """The squared norm of each entry as a share of its block's; the last block may be shorter."""
        squares, entries = vectors.square().sum(-1), vectors.shape[2]
        blocks = torch.nn.functional.pad(squares, (0, -entries % self.block)).unflatten(-1, (-1, self.block))
        sums = blocks.sum(-1, keepdim=True).clamp(min=torch.finfo(blocks.dtype).tiny)
        return (blocks / sums).flatten(-2)[..., :entries]
