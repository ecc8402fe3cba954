"""Finch (Corallo & Papotti 2024, TACL; code giulio98/context-compression), as kvpress runs it: what the question reads.

Attention of the question's tokens to the tokens before them, each row times the keys that it sees, is summed and
averaged over a KV head's query heads; the question itself stays. Keys are rotated to their rank among those that stay.
"""

from dataclasses import dataclass

from pvcbench.policy import Method, OutOfReach, UserError, torch


@dataclass(frozen=True)
class Finch(Method):
    """`window` last tokens are the question, null: all that came after the context."""

    window: int | None = None
    positions: str = "cache"  # cache: keys are rotated to their place among what stays | original
    decodes = ("grow",)
    protocols = ("generate",)
    ragged_batch = property(lambda self: True)  # questions differ in length
    needs_question = property(lambda self: self.window is None)

    def __post_init__(self):
        if self.positions not in ("cache", "original"):
            raise UserError(f"finch: positions must be cache or original, not {self.positions!r}")
        if self.window is not None and self.window < 1:
            raise UserError("finch: window must be 1 or more, or null")

    def asked(self, shape):
        """Tokens of the question."""
        return min(shape.question if self.window is None else self.window, shape.tokens)

    def resolve(self, budget, shape):
        rows = self.asked(shape)
        if not rows:
            raise UserError("finch: no question is compressed here: leave query_aware=true, or set its window")
        if budget <= rows and budget < shape.tokens:
            raise OutOfReach(f"below the question's {rows} entries, which Finch always keeps, and one more")
        return self

    def row_weights(self, shape, layer):
        return torch.arange(shape.tokens - self.asked(shape) + 1, shape.tokens + 1, dtype=torch.float64)

    def protects(self, budget, shape):
        return 0, self.asked(shape)

    def scores(self, seen):
        return seen.grouped_mass()
