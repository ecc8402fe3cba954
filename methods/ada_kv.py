"""Ada-KV (Feng et al. 2024, arXiv 2407.11550; code FFY0/AdaKV): a layer's budget goes to the heads that need it.

The scores of another method are pooled over the heads of a layer: each head gets as many entries as it has among the
layer's best, mixed with an equal share by `floor` (alpha). Heads keep different numbers of entries, stored as such.
The entries that the other method protects are counted on top, as in the official code; rounding keeps the sum exact.
"""

from dataclasses import dataclass, field

from methods.snapkv import SnapKV
from pvcbench.policy import Method, Observation, UserError, by_layer, torch


@dataclass(frozen=True)
class AdaKV(Method):
    """`base` scores, `floor` is the share of the budget that every head gets alike."""

    base: Method = field(default_factory=SnapKV)
    floor: float = 0.2
    decodes = ("grow",)
    protocols = ("generate", "continuation")

    def __post_init__(self):
        if not 0 <= self.floor <= 1:
            raise UserError(f"ada_kv: floor must lie in [0, 1], not {self.floor}")
        if self.base.prunes or self.base.own_budget is not None or self.base.positions != "original":
            raise UserError("ada_kv: base must be a method that scores a whole prefill at original positions")

    def resolve(self, budget, shape):
        self.base.resolve(budget, shape)
        return self

    def row_weights(self, shape, layer):
        return self.base.row_weights(shape, layer)

    def protects(self, budget, shape):
        return self.base.protects(budget, shape)

    def accumulate(self, seen):
        return self.base.accumulate(seen)

    def scores(self, seen: Observation):
        return self.base.scores(seen)

    def plan(self, scores, budget, shape):
        layers = by_layer(self.base.plan(scores, budget, shape), scores)
        first, last = self.base.protects(budget, shape)
        return [self._spread(*layer, first, last) for layer in zip(scores, layers, strict=True)]

    def _spread(self, scores, counts, first, last):
        """Counts per sample and head of one layer, with the sum that the base planned."""
        batch, kv_heads, entries = scores.shape
        open_scores = scores[..., first : entries - last]
        free = (counts - first - last).clamp(0, open_scores.shape[-1])
        found = counts.clone()
        for sample in range(batch):
            total = int(free[sample].sum())
            best = open_scores[sample].flatten().sort(descending=True, stable=True).indices[:total]
            wins = torch.bincount(best.cpu() // max(open_scores.shape[-1], 1), minlength=kv_heads).double()
            found[sample] = first + last + _rounded((1 - self.floor) * wins + self.floor * total / kv_heads, total)
        return found


def _rounded(shares, total):
    """Integers near the shares with their sum: the largest remainders are rounded up."""
    down = shares.floor().long()
    up = (shares - down).sort(descending=True, stable=True).indices[: total - int(down.sum())]
    down[up] += 1
    return down
