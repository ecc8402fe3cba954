"""SnapKV (Li et al. 2024, arXiv 2404.14469; code FasterDecoding/SnapKV): what the end of the prompt looks at stays.

The attention of the last `window` queries to the tokens before them is summed, pooled over neighbouring positions and
ranked per KV head; the window itself stays. Under grouped queries the official code keeps a copy of the cache per query
head and saves nothing. Here a KV head keeps one set: `pool_after: heads` pools each query head and then averages a
group's, as kvpress does; `group` averages first, as AdaKV's and KVCache-Factory's code for KV heads does. The order
matters to a maximum only, and where KV heads are shared.
"""

from dataclasses import dataclass

from pvcbench.policy import Method, OutOfReach, UserError, torch


@dataclass(frozen=True)
class SnapKV(Method):
    """`kernel` positions are pooled by their maximum or their average; a kernel of 1 pools nothing."""

    window: int = 32
    kernel: int = 7
    pooling: str = "max"  # max | average
    pool_after: str = "heads"  # heads: pool, then average a group's query heads | group: average, then pool
    decodes = ("grow",)
    protocols = ("generate", "continuation")

    def __post_init__(self):
        if self.pooling not in ("max", "average"):
            raise UserError(f"snapkv: pooling must be max or average, not {self.pooling!r}")
        if self.pool_after not in ("heads", "group"):
            raise UserError(f"snapkv: pool_after must be heads or group, not {self.pool_after!r}")
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
        scores = seen.mass.new_zeros(batch, kv_heads, entries)  # the window is protected, pooling does not look into it
        if older:
            mass = seen.mass[..., :older].reshape(batch, kv_heads, -1, older)
            mass = mass.mean(2, keepdim=True) if self.pool_after == "group" else mass
            pool = {"max": torch.nn.functional.max_pool1d, "average": torch.nn.functional.avg_pool1d}[self.pooling]
            pooled = pool(mass.flatten(1, 2), self.kernel, stride=1, padding=self.kernel // 2)
            scores[..., :older] = pooled.view(mass.shape).mean(2)
        return scores
