"""PyramidKV (Cai et al. 2024, arXiv 2406.02069; code Zefan-Cai/KVCache-Factory): SnapKV, more in shallow layers.

Beside the window, the first layer gets 2b - b/beta entries and the last b/beta, b being the mean, falling linearly; no
layer gets more than there are, and what that cuts off goes to the deepest. Prompts shorter than 2b fall back to equal
budgets, as in the official code. Its floor division makes the step between layers smaller and so adds entries (2,032
for 1,792 at a budget of 64, a window of 8 and 32 layers); here rounding keeps the sum at the budget exactly.
"""

from dataclasses import dataclass

from methods.snapkv import SnapKV
from pvcbench.policy import UserError, torch


@dataclass(frozen=True)
class PyramidKV(SnapKV):
    """`beta` is the steepness: the last layer keeps the mean divided by it."""

    beta: int = 20

    def __post_init__(self):
        super().__post_init__()
        if self.beta < 1:
            raise UserError("pyramidkv: beta must be 1 or more")

    def plan(self, scores, budget, shape):
        entries = scores[0].shape[-1]
        window, mean = min(self.window, entries), budget - min(self.window, entries)
        sizes = torch.full((len(scores),), budget)
        if shape.tokens >= 2 * mean and budget < shape.tokens and len(scores) > 1:
            sizes = window + pyramid(mean, entries - window, self.beta, len(scores))
        return [size.expand(layer.shape[:2]) for size, layer in zip(sizes, scores, strict=True)]


def pyramid(mean, most, beta, layers):
    """Integers that fall linearly with depth and have this mean: rounded running sums, so the sum is exact."""
    first = min(2 * mean - mean // beta, most)
    steps = torch.arange(layers, dtype=torch.float64) / (layers - 1)
    ideal = first - steps * 2 * (first - mean)
    ends = ideal.cumsum(0).round().long()
    return torch.diff(ends, prepend=ends.new_zeros(1))
