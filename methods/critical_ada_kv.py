"""CriticalAdaKV (Feng et al. 2025, arXiv 2502.03805; its author's code is kvpress' CriticalAdaKVPress): both at once.

Ada-KV shares a layer's budget among its heads by the scores of another method. Then each head fills its share in the
two stages of CriticalKV.
"""

from dataclasses import dataclass

from methods.ada_kv import AdaKV
from methods.critical_kv import CriticalKV


@dataclass(frozen=True)
class CriticalAdaKV(CriticalKV):
    """As CriticalKV; `floor` is Ada-KV's share of the budget that every head gets alike."""

    floor: float = 0.2
    least = 0

    def __post_init__(self):
        super().__post_init__()
        AdaKV(self.base, self.floor)  # which says what is wrong with them

    def counts(self, worth, shape):
        return AdaKV(self.base, self.floor).plan([worth], self.budget, shape)[0]

    def plan(self, scores, budget, shape):
        first, last = self.protects(budget, shape)
        inner = [layer[..., first : layer.shape[-1] - last] for layer in scores]
        return [first + last + (layer > 0).sum(-1).to(scores[0].device) for layer in inner]
