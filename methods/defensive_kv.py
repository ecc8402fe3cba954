"""DefensiveKV and Layer-DefensiveKV (Feng et al. 2025, arXiv 2510.13334; code FFY0/DefensiveKV): the worst case counts.

An entry is worth the most that any row of the window gives it, times what its value writes (see `defensive_scores`).
The entries that make up most of the mean attention come first. The budget is pooled over a layer's heads or, as
Layer-DefensiveKV, over those of all layers.
"""

from dataclasses import dataclass, replace

from methods.defensive_scores import first_stage, looked_at, worst_case
from methods.output_norms import written
from methods.pooling import pooled
from pvcbench.policy import Method, OutOfReach, UserError, torch


@dataclass(frozen=True)
class DefensiveKV(Method):
    """The first stage makes up `mass` less the `bias`: attention to the last of the prefix (code) or to the window."""

    window: int = 32
    kernel: int = 5
    mass: float = 0.9
    bias: str = "code"  # code | window
    pool: str = "layer"  # layer | model
    budget: int | None = None  # of the cell, by `resolve`
    needs_output = True
    needs_rows = property(lambda self: self.window)
    ragged_batch = property(lambda self: self.pool == "model")
    decodes = ("grow",)
    protocols = ("generate", "continuation")

    def __post_init__(self):
        if self.window < 1 or self.kernel < 1 or self.kernel % 2 == 0 or not 0 <= self.mass <= 1:
            raise UserError("defensive_kv: window must be 1 or more, kernel an odd number, mass within [0, 1]")
        if self.bias not in ("code", "window") or self.pool not in ("layer", "model"):
            raise UserError("defensive_kv: bias must be code or window, pool layer or model")

    def resolve(self, budget, shape):
        if budget <= self.window and budget < shape.tokens:
            raise OutOfReach(f"below DefensiveKV's window of {self.window} entries, which always stay")
        return replace(self, budget=budget)

    def protects(self, budget, shape):
        return 0, min(self.window, shape.tokens)

    def scores(self, seen):
        before, kv_heads = seen.positions.shape[-1] - self.window, seen.positions.shape[1]
        if before < 1:
            return torch.zeros_like(seen.positions, dtype=torch.float32)
        older, own = looked_at(seen, before)
        norms = written(seen)[..., :before]
        scores = worst_case(older, kv_heads, self.kernel) * (norms / norms.sum(1, keepdim=True).clamp(min=1e-30))
        bias = own if self.bias == "window" else older[..., -self.window :].sum(-1)
        sure = first_stage(older, kv_heads, self.mass - bias.mean((1, 2)), self.budget - self.window)
        scores = torch.where(sure, scores.amax((1, 2), keepdim=True), scores)
        return torch.nn.functional.pad(scores, (0, self.window))

    def plan(self, scores, budget, shape):
        pools = [scores] if self.pool == "model" else [[layer] for layer in scores]
        found = [counts for pool in pools for counts in pooled(pool, budget, *self.protects(budget, shape))]
        return [counts.to(scores[0].device) for counts in found]
