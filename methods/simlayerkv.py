"""SimLayerKV (Zhang et al. 2024, arXiv 2410.13846; code sail-sg/SimLayerKV): lazy layers keep sinks and a window only.

A layer is lazy as far as the newest row's attention lies on the first and the most recent tokens, mean over heads. By
`threshold` each layer above it keeps these tokens, and the others all. For a budget the laziest layers are cut, as many
as it takes, and the last of them as far as it takes: it keeps a longer window.
"""

from dataclasses import dataclass

from pvcbench.policy import Method, OutOfReach, UserError, torch


@dataclass(frozen=True)
class SimLayerKV(Method):
    """`sinks` first and `recent` last tokens stay everywhere; a `threshold` fixes the size and takes no budget."""

    sinks: int = 4
    recent: int = 1024
    threshold: float | None = None
    decodes = ("grow",)
    protocols = ("generate", "continuation")
    ragged_batch = property(lambda self: True)
    own_budget = property(lambda self: None if self.threshold is None else f"lazy>{self.threshold}")

    def __post_init__(self):
        if self.sinks < 0 or self.recent < 1 or not 0 <= (self.threshold or 0) <= 1:
            raise UserError("simlayerkv: sinks must be 0 or more, recent 1 or more, threshold null or within [0, 1]")

    def resolve(self, budget, shape):
        least = self.sinks + self.recent
        if budget is not None and budget < min(least, shape.tokens):
            raise OutOfReach(f"below the {least} entries that SimLayerKV's lazy layers keep")
        return self

    def row_weights(self, shape, layer):
        return torch.ones(1, dtype=torch.float64)

    def protects(self, budget, shape):
        sinks = min(self.sinks, shape.tokens)
        return sinks, min(self.recent, shape.tokens - sinks)

    def scores(self, seen):
        return seen.positions.float()

    def notes(self, seen):
        near = (seen.positions < self.sinks) | (seen.positions >= seen.seen - self.recent)
        return (seen.mass * near[:, :1]).sum(-1).mean(1)

    def plan(self, scores, budget, shape, notes):
        lazy, entries = torch.stack(notes), scores[0].shape[-1]  # layers, batch
        most = entries - min(self.sinks + self.recent, entries)  # that a layer can lose
        if self.threshold is not None:
            sizes = entries - most * (lazy > self.threshold).long()
        else:
            rank = lazy.argsort(dim=0, descending=True, stable=True).argsort(0)
            sizes = entries - (len(scores) * (entries - budget) - rank * most).clamp(0, most)
        return [size[:, None].expand(layer.shape[:2]) for size, layer in zip(sizes, scores, strict=True)]
