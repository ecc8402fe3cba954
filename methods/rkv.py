"""R-KV (Cai et al. 2025, arXiv 2505.24133; code Zefan-Cai/R-KV): what the newest rows look at and others do not repeat.

Importance is the attention of the last `window` queries to the entries before them, by the largest logit of a KV head's
query heads, pooled over neighbours. Redundancy is how alike an entry's key is to all others, after rotary embedding; in
each entry's row the newest of those that are alike does not count. Made for long answers: `decode=hold interval=128`.
"""

from dataclasses import dataclass

from methods.newest_rows import before_window, in_order, mean_attention, pooled
from pvcbench.policy import Method, OutOfReach, UserError, torch

ROWS = 64  # of the similarities that are formed together


@dataclass(frozen=True)
class RKV(Method):
    """`mix_lambda` weighs importance, the rest redundancy; keys whose cosine is above `similar` are alike."""

    mix_lambda: float = 0.1
    window: int = 8
    kernel: int = 7
    similar: float = 0.5
    protocols = ("generate", "continuation")
    needs_rows = property(lambda self: self.window)

    def __post_init__(self):
        if not (0 <= self.mix_lambda <= 1 and 0 <= self.similar <= 1):
            raise UserError("rkv: mix_lambda and similar must lie in [0, 1]")
        if self.window < 1 or self.kernel < 1 or self.kernel % 2 == 0:
            raise UserError("rkv: window must be 1 or more and kernel an odd number")

    def resolve(self, budget, shape):
        if budget is not None and budget <= self.window and budget < shape.tokens:
            raise OutOfReach(f"below R-KV's window of {self.window} entries, which always stay")
        return self

    def protects(self, budget, shape):
        return 0, self.window

    def scores(self, seen):
        largest = mean_attention(seen, before_window(seen, self.window), lambda logits: logits.amax(2, keepdim=True))
        importance = pooled(largest, seen.positions, torch.nn.functional.max_pool1d, self.kernel)[:, :, 0]
        order = in_order(seen.positions)
        keys = seen.keys.gather(2, order[..., None].expand(seen.keys.shape))
        alike = redundancy(keys, seen.positions.gather(-1, order) >= 0, self.similar)
        alike = torch.zeros_like(alike).scatter(-1, order, alike)
        return self.mix_lambda * importance - (1 - self.mix_lambda) * alike.to(importance)


def redundancy(keys, there, similar):
    """The softmax of each key's mean similarity to all others, keys by age; a few rows at a time."""
    unit = torch.nn.functional.normalize(keys.to(torch.promote_types(keys.dtype, torch.float32)), dim=-1)
    unit, entries = unit * there[..., None], keys.shape[2]
    places, total = torch.arange(entries, device=keys.device), 0.0
    for rows in places.split(ROWS):
        cosines = unit[:, :, rows] @ unit.mT
        cosines = cosines.masked_fill(rows[:, None] == places, 0.0)
        newest = places.masked_fill(cosines <= similar, -1).amax(-1, keepdim=True)  # -1: none is alike
        total = total + cosines.masked_fill(places == newest, 0.0).sum(2)
    mean = total / there.sum(-1, keepdim=True)
    return mean.masked_fill(~there, float("-inf")).softmax(-1)
