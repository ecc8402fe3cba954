"""KeyDiff (Park et al. 2025, arXiv 2504.15364): keys least like the others stay.

The anchor is the mean of the unit keys of a head (after rotary embedding, as cached); entries rank by their negative
cosine similarity to it. Under hold the anchor moves with the entries that are left.
"""

from dataclasses import dataclass

from pvcbench.policy import Method, torch


@dataclass(frozen=True)
class KeyDiff(Method):
    """Keeps the most distinctive keys; empty slots do not enter the anchor."""

    def scores(self, seen):
        unit = torch.nn.functional.normalize(seen.keys, dim=-1)
        there = (seen.positions >= 0)[..., None]
        anchor = (unit * there).sum(2, keepdim=True) / there.sum(2, keepdim=True)
        return -torch.nn.functional.cosine_similarity(unit, anchor, dim=-1)
