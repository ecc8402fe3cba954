"""Leverage scores of keys, the half of Compactor (Chari & Van Durme 2025, arXiv 2507.08143) that looks at geometry.

Keys before rotary embedding, less their mean, are made narrower by a Gaussian matrix: X. An entry's leverage is the
diagonal of X (X'X + jitter I)^-1 X': how little the other keys say of it. kvpress runs it as LeverageScorePress.
"""

from dataclasses import dataclass

from methods.gaussian import gaussian
from pvcbench.policy import Method, UserError, torch


@dataclass(frozen=True)
class LeverageScore(Method):
    """`sketch` is the width of the Gaussian matrix, which every KV head has of its own."""

    sketch: int = 48
    jitter: float = 0.01
    needs_plain_keys = True
    decodes = ("grow",)
    protocols = ("generate", "continuation")

    def __post_init__(self):
        if self.sketch < 1 or self.jitter <= 0:
            raise UserError("leverage_score: sketch must be 1 or more and jitter above 0")

    def scores(self, seen):
        return leverage(seen.plain_keys(), sketching(seen, self.sketch), self.jitter)


def sketching(seen, width):
    """The Gaussian matrix of each sample and KV head, [batch, kv_heads, dim, width]."""
    return gaussian(seen, seen.keys.shape[1], seen.keys.shape[-1], width) / width**0.5


def leverage(keys, sketch, jitter):
    """Leverage of each entry among [batch, kv_heads, entries, dim], in float64 since X'X may be near singular."""
    keys = keys.double()
    narrow = (keys - keys.mean(2, keepdim=True)) @ sketch.double()
    gram = narrow.mT @ narrow + jitter * torch.eye(narrow.shape[-1], dtype=narrow.dtype, device=narrow.device)
    return (narrow * torch.linalg.solve(gram, narrow.mT).mT).sum(-1).clamp(min=0)
