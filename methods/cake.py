"""CAKE (Qin et al. 2025, arXiv 2503.12491; code antgroup/cakekv): more for attention that is spread and that moves.

Of the last `window` rows' attention to the tokens before them: entropy H and variance over rows V, summed over a layer,
give the layer H^(1/tau1) V^(1/tau2) shares of the budget beyond the windows, and mean plus `gamma` times variance over
rows, averaged over five neighbours and a group's query heads, rank its entries. Nothing is normalised again.
"""

from dataclasses import dataclass

from methods.cake_layers import older, shared
from pvcbench.policy import Method, OutOfReach, UserError, torch


@dataclass(frozen=True)
class CAKE(Method):
    """`tau1` and `tau2` are the paper's temperatures, tuned for some models and budgets; the window stays."""

    window: int = 32
    kernel: int = 5
    gamma: float = 200.0
    tau1: float = 1.0
    tau2: float = 1.0
    decodes = ("grow",)
    protocols = ("generate", "continuation")
    ragged_batch = property(lambda self: True)
    needs_rows = property(lambda self: self.window)

    def __post_init__(self):
        if self.window < 2 or self.kernel % 2 == 0 or self.kernel < 1 or min(self.tau1, self.tau2) <= 0:
            raise UserError("cake: window must be 2 or more, kernel an odd number, tau1 and tau2 above 0")

    def resolve(self, budget, shape):
        if budget is not None and budget <= self.window and budget < shape.tokens:
            raise OutOfReach(f"below CAKE's window of {self.window} entries, which always stay")
        return self

    def protects(self, budget, shape):
        return 0, min(self.window, shape.tokens)

    def scores(self, seen):
        attention, kv_heads = older(seen, self.window), seen.positions.shape[1]
        scores = torch.zeros_like(seen.positions, dtype=attention.dtype)
        worth = attention.mean(2) + self.gamma * attention.var(2)
        pooled = torch.nn.functional.avg_pool1d(worth, self.kernel, stride=1, padding=self.kernel // 2)
        scores[..., : pooled.shape[-1]] = pooled.unflatten(1, (kv_heads, -1)).mean(2)
        return scores

    def notes(self, seen):
        attention = older(seen, self.window)
        entropy = -(attention * (attention + 1e-10).log()).sum((1, 2, 3)).clamp(max=0).double()
        return entropy ** (1 / self.tau1) * attention.var(2).sum((1, 2)).double() ** (1 / self.tau2)

    def plan(self, scores, budget, shape, notes):
        total, most = len(scores) * (budget - self.window), scores[0].shape[-1] - self.window
        sizes = [shared(sample, total, most) for sample in torch.stack(notes, 1).tolist()]  # of samples, of layers
        sizes = self.window + torch.tensor(sizes).T
        return [size[:, None].expand(layer.shape[:2]) for size, layer in zip(sizes, scores, strict=True)]
