"""Layer budgets by spread, after CAKE (Qin et al. 2025, arXiv 2503.12491): scattered attention keeps more entries.

CAKE's preference for a layer is the entropy of the last window's attention, to a power, times a power of how much that
attention shifts between rows. Here the first factor stands alone, taken of another method's scores, since column sums
are all a method sees. Beside what the other method protects, a layer gets the budget's sum in proportion to it; no
layer more than there are, and what that cuts off goes to the others.
"""

from dataclasses import dataclass, field

from methods.snapkv import SnapKV
from pvcbench.policy import Method, UserError, torch


@dataclass(frozen=True)
class LayerEntropy(Method):
    """Scores are those of `base`; `temperature` is CAKE's for the entropy: the higher, the more equal the layers."""

    base: Method = field(default_factory=SnapKV)
    temperature: float = 1.0
    decodes = ("grow",)
    protocols = ("generate", "continuation")
    ragged_batch = property(lambda self: True)

    def __post_init__(self):
        if self.temperature <= 0:
            raise UserError("layer_entropy: temperature must be above 0")
        if self.base.prunes or self.base.own_budget is not None or self.base.positions != "original":
            raise UserError("layer_entropy: base must be a method that scores a whole prefill at original positions")

    def resolve(self, budget, shape):
        self.base.resolve(budget, shape)
        return self

    def row_weights(self, shape, layer):
        return self.base.row_weights(shape, layer)

    def protects(self, budget, shape):
        return self.base.protects(budget, shape)

    def scores(self, seen):
        return self.base.scores(seen)

    def plan(self, scores, budget, shape):
        entries = scores[0].shape[-1]
        first, last = self.base.protects(budget, shape)
        most = entries - first - last
        if budget >= entries or most < 2:
            return self.base.plan(scores, budget, shape)
        spread = [entropy(layer[..., first : entries - last]).tolist() for layer in scores]
        spread = torch.tensor(spread, dtype=torch.float64)  # layers, batch
        ideal = shared(spread ** (1 / self.temperature), len(scores) * (budget - first - last), most)
        ends = ideal.cumsum(0).round().long()
        sizes = first + last + torch.diff(ends, dim=0, prepend=torch.zeros_like(ends[:1]))
        return [size[:, None].expand(layer.shape[:2]) for size, layer in zip(sizes, scores, strict=True)]


def entropy(scores):
    """Entropy in nats of each sample's scores as shares, mean over heads; [batch, heads, entries], none negative."""
    shares = scores.double() / scores.double().sum(-1, keepdim=True).clamp(min=1e-300)
    return torch.special.entr(shares).sum(-1).mean(-1)


def shared(weights, total, most):
    """`total` in proportion to weights, [layers, batch], none above `most`: what is cut off goes to the others."""
    weights, full = weights.clamp(min=1e-12), torch.zeros_like(weights, dtype=torch.bool)
    for _ in range(len(weights)):
        rest = (total - most * full.sum(0)) / weights.masked_fill(full, 0).sum(0).clamp(min=1e-300)
        shares = (weights * rest).masked_fill(full, most)
        full = full | (shares > most)
    return shares.clamp(max=most)
