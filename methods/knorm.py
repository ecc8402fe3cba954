"""Knorm (Devoto et al. 2024, arXiv 2406.11430): keys with small norms stay, since they draw attention."""

from dataclasses import dataclass

from pvcbench.policy import Method


@dataclass(frozen=True)
class Knorm(Method):
    """Ranks entries by the negative L2 norm of their keys, which rotary embedding does not change."""

    def scores(self, seen):
        return -seen.keys.norm(dim=-1)
