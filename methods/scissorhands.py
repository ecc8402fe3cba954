"""Scissorhands (Liu et al. 2023, arXiv 2305.17118): what many rows looked at more than evenly stays.

Among the last `history` rows those are counted that gave an entry at least an even share of their attention, 1/t of a
row that sees t entries, over the query heads of a KV head; entries with the highest counts stay, and the newest. No
official code is known; the counting is that of cold-compress.
"""

from dataclasses import dataclass

from pvcbench.policy import Method, OutOfReach, UserError, torch


@dataclass(frozen=True)
class Scissorhands(Method):
    """`recent` newest entries stay whatever their counts, of which the earlier of two equal ones stays."""

    recent: int = 10
    history: int = 400
    decodes = ("grow",)
    protocols = ("generate", "continuation")
    needs_rows = property(lambda self: self.history)

    def __post_init__(self):
        if self.recent < 0 or self.history < 1:
            raise UserError("scissorhands: recent must be 0 or more and history 1 or more")

    def resolve(self, budget, shape):
        if budget is not None and budget < min(self.recent, shape.tokens):
            raise OutOfReach(f"below the {self.recent} newest entries that Scissorhands always keeps")
        return self

    def protects(self, budget, shape):
        return 0, min(self.recent, shape.tokens)

    def scores(self, seen):
        batch, kv_heads, entries = seen.positions.shape
        counts = torch.zeros_like(seen.positions, dtype=torch.float32)
        before = entries - seen.rows.query.shape[2]
        for first, after, weights in seen.rows.blocks():
            sees = torch.arange(before + first + 1, before + after + 1, device=weights.device)
            sees = sees if seen.rows.window is None else sees.clamp(max=seen.rows.window)
            more = (weights >= 1 / sees[:, None].to(weights)).sum(2).view(batch, kv_heads, -1, weights.shape[-1]).sum(2)
            counts[..., : weights.shape[-1]] += more
        return counts
