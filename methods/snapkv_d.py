"""SnapKV-D: SnapKV while decoding, as VaSE's code has it (arXiv 2606.03928): what the newest rows look at stays.

The attention of the last `window` queries to the entries before them, of which alone each row's softmax is taken, is
averaged over rows, pooled over neighbours and averaged over a KV head's query heads; the window itself stays. Made for
long answers: `decode=hold interval=64`.
"""

from dataclasses import dataclass

from methods.newest_rows import before_window, mean_attention, pooled
from pvcbench.policy import Method, OutOfReach, UserError, torch


@dataclass(frozen=True)
class SnapKVD(Method):
    """`kernel` neighbours are averaged; a kernel of 1 pools nothing."""

    window: int = 64
    kernel: int = 5
    protocols = ("generate", "continuation")
    needs_rows = property(lambda self: self.window)

    def __post_init__(self):
        if self.window < 1 or self.kernel < 1 or self.kernel % 2 == 0:
            raise UserError("snapkv_d: window must be 1 or more and kernel an odd number")

    def resolve(self, budget, shape):
        if budget is not None and budget <= self.window and budget < shape.tokens:
            raise OutOfReach(f"below SnapKV-D's window of {self.window} entries, which always stay")
        return self

    def protects(self, budget, shape):
        return 0, self.window

    def scores(self, seen):
        attention = mean_attention(seen, before_window(seen, self.window))
        return pooled(attention, seen.positions, torch.nn.functional.avg_pool1d, self.kernel).mean(2)
