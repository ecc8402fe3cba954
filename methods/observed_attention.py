"""Mean observed attention: what kvpress runs under H2O's name (ObservedAttentionPress).

Each entry's attention is summed over all queries, divided by how many of them could see it, and averaged over the
query heads of a KV head; nothing is protected, so the newest entries, seen by few, stand or fall by their few rows.
"""

from dataclasses import dataclass

from pvcbench.policy import Method, torch


@dataclass(frozen=True)
class ObservedAttention(Method):
    """Keeps the entries with the highest mean attention."""

    watches_decoding = True
    channels = 1

    def row_weights(self, shape, layer):
        return torch.ones(shape.tokens, dtype=torch.float64)

    def accumulate(self, seen):
        received = seen.grouped_mass().double()[..., None]
        return received if seen.totals is None else seen.totals + received

    def scores(self, seen):
        return seen.totals[..., 0] / (seen.seen - seen.positions)
