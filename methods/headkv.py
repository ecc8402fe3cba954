"""HeadKV (Fu et al. 2024, arXiv 2410.19258; code FYYFU/HeadKV): SnapKV, more for heads that retrieve and reason.

A file says how important each query head was found to be. Beside the window every head gets the same smaller part of
the budget, and the pool of what is left, floor((B - window) / beta) per head, is shared out by importance. A KV head
gets the mean of its query heads, as in KVCache-Factory's code for KV heads.
"""

from dataclasses import dataclass

from methods.fitting import head_weights
from methods.layer_entropy import shared
from methods.snapkv import SnapKV
from pvcbench.policy import Method, UserError, torch


@dataclass(frozen=True)
class HeadKV(SnapKV):
    """`file` maps "layer-head" to a list of numbers, whose mean counts; `beta` above 1 makes the pool smaller."""

    file: str | None = None
    beta: float = 1.01
    temperature: float = 1.0  # a power of the importance, the code's temp
    files = ("file",)

    def __post_init__(self):
        super().__post_init__()
        Method.__post_init__(self)
        if self.beta < 1 or self.temperature <= 0:
            raise UserError("headkv: beta must be 1 or more and temperature above 0")

    def scores(self, seen):
        head_weights(self.file, seen.shape.layers, seen.mass.shape[1])  # of this model?
        return super().scores(seen)

    def plan(self, scores, budget, shape):
        entries, kv_heads = scores[0].shape[-1], scores[0].shape[1]
        if budget >= entries:
            return super().plan(scores, budget, shape)
        weights = head_weights(self.file, shape.layers)[list(shape.evicted)]
        weights = (weights / weights.sum().clamp(min=1e-300)) ** self.temperature
        weights = (weights / weights.sum().clamp(min=1e-300)).unflatten(1, (kv_heads, -1)).mean(-1).flatten()
        beside = budget - self.window
        pool = int(beside // self.beta)
        ideal = weights / weights.sum().clamp(min=1e-300) * pool * len(weights) + beside - pool
        ideal = shared(ideal[:, None], len(weights) * beside, entries - self.window)[:, 0]
        ends = ideal.cumsum(0).round().long()
        sizes = self.window + torch.diff(ends, prepend=ends.new_zeros(1)).view(-1, kv_heads)
        return [size.expand(len(layer), -1) for size, layer in zip(sizes, scores, strict=True)]
