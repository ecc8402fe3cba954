"""SnapKV (Li et al. 2024, arXiv 2404.14469; code FasterDecoding/SnapKV): what the end of the prompt looks at stays.

The attention of the last `window` queries to the tokens before them is summed, pooled over neighbouring positions and
ranked per KV head; the window itself stays. The query heads of a KV head are averaged after pooling, as kvpress does
(the official code repeats the cache to one copy per query head instead, and saves nothing under grouped queries).
"""

from dataclasses import dataclass

from pvcbench.policy import Method, OutOfReach, UserError, torch


@dataclass(frozen=True)
class SnapKV(Method):
    """`kernel` positions are pooled by their maximum or their average; a kernel of 1 pools nothing."""

    window: int = 32
    kernel: int = 7
    pooling: str = "max"  # max | average
    decodes = ("grow",)
    protocols = ("generate", "continuation")

    def __post_init__(self):
        if self.pooling not in ("max", "average"):
            raise UserError(f"snapkv: pooling must be max or average, not {self.pooling!r}")
        if self.window < 1 or self.kernel < 1 or self.kernel % 2 == 0:
            raise UserError("snapkv: window must be 1 or more and kernel an odd number")

    def resolve(self, budget, shape):
        if budget is not None and budget <= self.window and budget < shape.tokens:
            raise OutOfReach(f"below SnapKV's window of {self.window} entries, which always stay")
        return self

    def row_weights(self, shape, layer):
        return torch.ones(min(self.window, shape.tokens), dtype=torch.float64)

    def protects(self, budget, shape):
        return 0, min(self.window, shape.tokens)

    def scores(self, seen):
        batch, kv_heads, entries = seen.positions.shape
        older = max(0, entries - self.window)
        mass = torch.zeros_like(seen.mass)  # the window is protected and pooling does not look into it
        if older:
            pool = {"max": torch.nn.functional.max_pool1d, "average": torch.nn.functional.avg_pool1d}[self.pooling]
            mass[..., :older] = pool(seen.mass[..., :older], self.kernel, stride=1, padding=self.kernel // 2)
        return mass.view(batch, kv_heads, -1, entries).mean(2)
