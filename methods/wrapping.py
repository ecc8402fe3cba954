"""Methods that change the scores of another method and ask for what that one asks for."""

from dataclasses import dataclass, field, replace

from methods.snapkv import SnapKV
from methods.value_norm import ValueNorm
from pvcbench.policy import Method, OutOfReach, UserError


@dataclass(frozen=True)
class Wrapping(Method):
    """Everything but the scores is the base's; `budget` is the cell's, which scores may depend on."""

    base: Method = field(default_factory=SnapKV)
    budget: int | None = None  # by `resolve`
    channels = property(lambda self: self.base.channels)
    needs_queries = property(lambda self: self.base.needs_queries)
    needs_rows = property(lambda self: self.base.needs_rows)
    needs_plain_keys = property(lambda self: self.base.needs_plain_keys)
    needs_hidden = property(lambda self: self.base.needs_hidden)
    decodes = ("grow",)
    protocols = ("generate", "continuation")

    def resolve(self, budget, shape):
        stay = sum(self.base.protects(budget, shape))
        if budget < min(stay, shape.tokens):
            raise OutOfReach(f"below the {stay} first and last entries that the base always keeps")
        return replace(self, base=self.base.resolve(budget, shape), budget=budget)

    def row_weights(self, shape, layer):
        return self.base.row_weights(shape, layer)

    def protects(self, budget, shape):
        return self.base.protects(budget, shape)

    def accumulate(self, seen):
        return self.base.accumulate(seen)


def require_plain_base(name, base):
    """Raises UserError where a base does not score a whole prefill, spreads its budget or weighs by values itself."""
    if base.prunes or base.own_budget is not None or base.positions != "original":
        raise UserError(f"{name}: base must be a method that scores a whole prefill at original positions")
    if type(base).plan is not Method.plan or type(base).notes is not Method.notes:
        raise UserError(f"{name}: base must be a method that gives every layer and head the same budget")
    if isinstance(base, ValueNorm) or getattr(base, "value_norm", False):
        raise UserError(f"{name}: what values write is weighed here, so the base's own value norm must be off")
