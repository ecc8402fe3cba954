"""Value norms on any score: attention of 1% to a value a hundred times as long is not small.

From Fu's "How Do Language Models put Attention Weights over Long Context?" (2024): what an entry adds to the output is
its attention times its value. The norm multiplies the scores of another method, which must not be negative.
"""

from dataclasses import dataclass, field

from methods.h2o import H2O
from pvcbench.policy import Method, UserError


@dataclass(frozen=True)
class ValueNorm(Method):
    """Scores of `base` times the L2 norm of each entry's value; all else is the base's."""

    base: Method = field(default_factory=H2O)

    def __post_init__(self):
        if self.base.prunes or self.base.own_budget is not None or self.base.positions != "original":
            raise UserError("value_norm: base must be a method that scores a whole prefill at original positions")

    decodes = property(lambda self: self.base.decodes)
    protocols = property(lambda self: self.base.protocols)
    watches_decoding = property(lambda self: self.base.watches_decoding)
    channels = property(lambda self: self.base.channels)

    def resolve(self, budget, shape):
        self.base.resolve(budget, shape)
        return self

    def row_weights(self, shape, layer):
        return self.base.row_weights(shape, layer)

    def protects(self, budget, shape):
        return self.base.protects(budget, shape)

    def accumulate(self, seen):
        return self.base.accumulate(seen)

    def plan(self, scores, budget, shape):
        return self.base.plan(scores, budget, shape)

    def scores(self, seen):
        return self.base.scores(seen) * seen.values.norm(dim=-1)
