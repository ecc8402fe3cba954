"""KVzap (2026, arXiv 2601.07891; code in kvpress, KVzapPress and DMSPress): a small model foresees KVzip+'s scores.

For each layer a linear map, or a perceptron with one hidden layer, makes of the hidden states that attention is given
the logarithm of each KV head's score. What is below a threshold goes. The file says which of the two models it holds.
"""

from dataclasses import dataclass

from methods.kvzap_model import foreseen, maps
from methods.pooling import pooled
from pvcbench.policy import Method, OutOfReach, UserError, tensors


@dataclass(frozen=True)
class KVzap(Method):
    """The last `recent` tokens stay. A `threshold` fixes the size; a budget keeps the best of all layers and heads."""

    file: str | None = None
    recent: int = 128
    threshold: float | None = None
    files = ("file",)
    needs_hidden = True
    ragged_batch = True
    decodes = ("grow",)
    protocols = ("generate", "continuation")
    own_budget = property(lambda self: None if self.threshold is None else f"log score>={self.threshold}")

    def __post_init__(self):
        super().__post_init__()
        if self.recent < 1:
            raise UserError("kvzap: recent must be 1 or more")

    def validate(self, setting):
        super().validate(setting)
        maps(tensors(self.file), 0, self.file)

    def resolve(self, budget, shape):
        if budget is not None and budget < min(self.recent, shape.tokens):
            raise OutOfReach(f"below the last {self.recent} entries, which KVzap always keeps")
        return self

    def protects(self, budget, shape):
        return 0, min(self.recent, shape.tokens)

    def scores(self, seen):
        return foreseen(tensors(self.file), seen, self.file)

    def plan(self, scores, budget, shape):
        first, last = self.protects(budget, shape)
        if self.threshold is None:
            return pooled(scores, budget, first, last)
        above = [(layer[..., : layer.shape[-1] - last] >= self.threshold).sum(-1) for layer in scores]
        return [last + count.to(scores[0].device) for count in above]
