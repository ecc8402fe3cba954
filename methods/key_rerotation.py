"""KeyRerotation (from StreamingLLM's and Finch's code; kvpress' KeyRerotationPress): what stays stands without gaps.

The entries are another method's choice. Keys after RoPE are turned by rank minus position, and the next token stands
at the position after the last rank, so that the model reads a shorter text instead of one with holes.
"""

from dataclasses import dataclass, field, replace

from methods.snapkv import SnapKV
from pvcbench.policy import Method, UserError


@dataclass(frozen=True)
class KeyRerotation(Method):
    """`base` scores and plans; all else is the base's, apart from eviction while generating."""

    base: Method = field(default_factory=SnapKV)
    positions: str = "cache"  # cache: keys are rotated to their place among what stays | original: as the base
    decodes = ("grow",)
    protocols = property(lambda self: tuple(one for one in self.base.protocols if one in ("generate", "continuation")))
    ragged_batch = property(lambda self: self.base.ragged_batch)
    needs_queries = property(lambda self: self.base.needs_queries)
    needs_rows = property(lambda self: self.base.needs_rows)
    needs_plain_keys = property(lambda self: self.base.needs_plain_keys)
    needs_output = property(lambda self: self.base.needs_output)
    needs_hidden = property(lambda self: self.base.needs_hidden)
    needs_question = property(lambda self: self.base.needs_question)

    def __post_init__(self):
        if self.positions not in ("cache", "original"):
            raise UserError(f"key_rerotation: positions must be cache or original, not {self.positions!r}")
        base = self.base
        if base.prunes or base.own_budget is not None or base.positions != "original" or base.reads is not None:
            raise UserError("key_rerotation: base must be a method that scores a whole prefill at original positions")

    def resolve(self, budget, shape):
        return replace(self, base=self.base.resolve(budget, shape))

    def row_weights(self, shape, layer):
        return self.base.row_weights(shape, layer)

    def protects(self, budget, shape):
        return self.base.protects(budget, shape)

    def passes(self, prompt):
        return self.base.passes(prompt)

    def scores(self, seen):
        return self.base.scores(seen)

    def notes(self, seen):
        return self.base.notes(seen)

    def plan(self, scores, budget, shape, *notes):
        return self.base.plan(scores, budget, shape, *notes)
