"""LagKV at intervals while decoding (arXiv 2504.04704), as kvpress' DecodingPress runs it: the cache anew each time.

The entries that are left, by age, are cut into partitions as a prompt is; those that were compared with the partition
after them before may now be compared with others. The last partition and the rest, which nothing follows, come before
all others, the newest first, but nothing of them is protected: a budget may be smaller.
"""

from dataclasses import dataclass, replace

from methods.lagkv import LagKV
from methods.newest_rows import in_order


@dataclass(frozen=True)
class LagKVDecoding(LagKV):
    """`sinks` and `lag` as LagKV's."""

    decodes = ("grow", "hold")

    def resolve(self, budget, shape):
        return self

    def protects(self, budget, shape):
        return min(self.sinks, shape.tokens), 0

    def scores(self, seen):
        order = in_order(seen.positions)
        keys, values = (one.gather(2, order[..., None].expand(one.shape)) for one in (seen.keys, seen.values))
        scores = super().scores(replace(seen, keys=keys, values=values, positions=seen.positions.gather(-1, order)))
        parts = (order.shape[-1] - self.sinks) // self.lag
        if parts > 1:
            newest = self.sinks + (parts - 1) * self.lag
            scores[..., newest:] = 1.0 + (order.new_ones(order.shape[-1] - newest).cumsum(0)).to(scores)
        return scores.new_zeros(scores.shape).scatter(-1, order, scores)
