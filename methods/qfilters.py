"""Q-Filters (Godey et al. 2025, arXiv 2503.02812; code NathanGodey/qfilters): keys that lie where queries point.

A filter of each KV head is the direction that the head's queries share, found once for a model (`pvcbench calibrate
q-filters`); it is stored negated. An entry is worth the negative product of its key, after rotary embedding, with it.
"""

from dataclasses import dataclass

from methods.fitting import fitting
from pvcbench.policy import Method, OutOfReach, UserError, torch


@dataclass(frozen=True)
class QFilters(Method):
    """`file` holds `q_filters`, [layers, kv_heads, dim]; the `recent` newest entries stay."""

    file: str | None = None
    recent: int = 0
    files = ("file",)

    def __post_init__(self):
        super().__post_init__()
        if self.recent < 0:
            raise UserError("qfilters: recent must be 0 or more")

    def resolve(self, budget, shape):
        if budget is not None and budget < min(self.recent, shape.tokens):
            raise OutOfReach(f"below the {self.recent} newest entries that Q-Filters always keeps")
        return self

    def protects(self, budget, shape):
        return 0, self.recent

    def scores(self, seen):
        size = seen.shape.layers, seen.keys.shape[1], seen.keys.shape[-1]
        filters = fitting(self.file, "q_filters", seen.layer, size, "layers, KV heads, head size")
        wide = torch.promote_types(seen.keys.dtype, torch.float32)
        return -(seen.keys.to(wide) @ filters.to(seen.keys.device, wide)[..., None])[..., 0]
