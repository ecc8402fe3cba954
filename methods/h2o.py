"""H2O: heavy hitters and a recent half (Zhang et al. 2023, arXiv 2306.14048; FMInference/H2O).

An entry's score is the attention it received from all queries so far, prefill and decoding, summed per KV head.
Half of the budget goes to the newest entries, the rest to the highest scores; under hold one entry leaves per step,
its score with it. Prefill attends in full.
"""

from dataclasses import dataclass

from pvcbench.policy import Method, torch


@dataclass(frozen=True)
class H2O(Method):
    """`normalize` divides each sum by the number of queries that could see the entry (kvpress' definition)."""

    normalize: bool = False
    watches_decoding = True
    channels = 1

    def row_weights(self, shape, layer):
        return torch.ones(shape.tokens, dtype=torch.float64)

    def protects(self, budget, shape):
        return 0, budget // 2

    def accumulate(self, seen):
        received = seen.grouped_mass().double()[..., None]
        return received if seen.totals is None else seen.totals + received

    def scores(self, seen):
        total = seen.totals[..., 0]
        return total / (seen.seen - seen.positions) if self.normalize else total
