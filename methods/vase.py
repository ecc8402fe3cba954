"""VaSE (arXiv 2606.03928): value outliers stay, and the rest is drawn at random by attention, anew at each eviction.

Of the entries before the window, the first tokens and those with the widest range of value channels stay. The others
are drawn without replacement with the pooled attention of the newest rows (as `snapkv_d`) for their probabilities. Made
for long answers: `decode=hold interval=64`.
"""

from dataclasses import dataclass, replace

from methods.newest_rows import before_window, in_order
from methods.random_redrawn import drawn
from methods.snapkv_d import SnapKVD
from pvcbench.policy import OutOfReach, UserError, torch

ABOVE = 1000.0  # more than any logarithm of a probability and its noise


@dataclass(frozen=True)
class VaSE(SnapKVD):
    """`outliers`, the `sinks` first tokens among them, stay by their values, but at most half of what is kept."""

    outliers: int = 1024
    sinks: int = 4
    settled: int | None = None  # the budget of the prompt

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.sinks <= self.outliers:
            raise UserError("vase: sinks must be 0 or more and outliers at least as many")

    def resolve(self, budget, shape):
        if budget is not None and budget <= self.window + self.sinks and budget < shape.tokens:
            raise OutOfReach(f"below VaSE's {self.sinks} first entries and window of {self.window}, which always stay")
        return replace(self, settled=budget)

    def protects(self, budget, shape):
        return self.sinks, self.window

    def scores(self, seen):
        among = before_window(seen, self.window) & (seen.positions >= max(self.sinks, seen.stays))
        scores = self.drawn_scores(super().scores(seen).double(), seen)
        values = seen.values.double()
        ranges = (values.amax(-1) - values.amin(-1)).masked_fill(~among, float("-inf"))
        newest = in_order(seen.positions).flip(-1)  # of equals the newest stays, as everywhere
        widest = newest.gather(-1, ranges.gather(-1, newest).sort(dim=-1, descending=True, stable=True).indices)
        widest = widest[..., : self.outliers_of(seen, among)]
        return scores.scatter(-1, widest, ABOVE + ranges.gather(-1, widest))

    def drawn_scores(self, attention, seen):
        """Scores whose largest ones are a draw without replacement by attention (Gumbel top-k)."""
        uniform = (drawn(seen) + 0.5) / 2**53
        return attention.clamp(min=torch.finfo(torch.float32).tiny).log() - torch.log(-torch.log(uniform))

    def outliers_of(self, seen, among):
        """How many entries stay by their values, beside the sinks."""
        there = int(among.sum(-1).amin())
        kept = there - seen.excess
        if seen.seen == seen.shape.tokens and self.settled is not None:
            kept = min(there, self.settled - self.window - self.sinks)
        return max(0, min(self.outliers - self.sinks, kept // 2))
