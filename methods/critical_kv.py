"""CriticalKV (Feng et al. 2025, arXiv 2502.03805; its author's code is kvpress' CriticalKVPress): values count too.

A share of a head's budget goes to the best entries by the scores of another method. The rest goes to those that are
best by these scores times the L1 norm of what their values write into the hidden states (see `output_norms`).
"""

from dataclasses import dataclass

from methods.output_norms import written
from methods.wrapping import Wrapping, require_plain_base
from pvcbench.policy import UserError, torch


@dataclass(frozen=True)
class CriticalKV(Wrapping):
    """The `first_stage` share of the budget is counted among unprotected entries or, by kvpress' `quota`, among all."""

    first_stage: float = 0.5
    epsilon: float = 1e-4
    quota: str = "unprotected"  # unprotected | kvpress
    needs_output = True
    least = 1  # entries of kvpress' first stage

    def __post_init__(self):
        require_plain_base("critical_kv", self.base)
        if not 0 <= self.first_stage <= 1 or self.epsilon < 0:
            raise UserError("critical_kv: first_stage must lie in [0, 1] and epsilon be 0 or more")
        if self.quota not in ("unprotected", "kvpress"):
            raise UserError(f"critical_kv: quota must be unprotected or kvpress, not {self.quota!r}")

    def row_weights(self, shape, layer):
        """Of a window's rows the mean is scored, as in the code, since the epsilon is added to the scores."""
        weights = self.base.row_weights(shape, layer)
        return weights if weights is None or len(weights) == shape.tokens else weights / len(weights)

    def counts(self, worth, shape):
        """What each head of a layer keeps, [batch, kv_heads]."""
        return torch.full(worth.shape[:2], self.budget)

    def scores(self, seen):
        """Above 0 for what is kept, the first stage first."""
        worth, (first, last) = self.base.scores(seen).double(), self.protects(self.budget, seen.shape)
        counts = self.counts(worth, seen.shape).to(worth.device)[..., None]
        early = (self.first_stage * (counts - first - last)).long()
        if self.quota == "kvpress":
            early = (self.first_stage * counts).long().clamp(min=self.least) - first - last
        closed = (seen.positions < first) | (seen.positions >= seen.seen - last)
        one = places(worth.masked_fill(closed, float("-inf")))
        two = places(((worth + self.epsilon) * written(seen)).masked_fill(closed, float("-inf")))
        order = places(torch.where(one < early, worth.shape[-1] - one, -two))
        return counts - first - last - order - 0.5


def places(worth):
    """The place of each entry in its head, 0 for the best; of equals the earlier comes first."""
    return worth.argsort(dim=-1, descending=True, stable=True).argsort(-1)
