"""Random eviction drawn anew each time: a recency bias, since an entry must survive every eviction after its arrival.

Of B entries and I new ones an entry survives m evictions with (B / (B + I))^m. `random` draws once for each entry and
so keeps a uniform sample of all tokens seen.
"""

from dataclasses import dataclass

from methods.random import scramble
from pvcbench.policy import Method, torch


def drawn(seen):
    """Whole numbers below 2^53 by (seed, sample, layer, KV head, position, tokens seen): other ones each time."""
    heads = torch.arange(seen.positions.shape[1], device=seen.positions.device)[:, None]
    state = scramble(scramble(seen.draws[:, None, None]) + seen.layer)
    state = scramble(scramble(scramble(state + heads) + seen.positions) + seen.seen)
    return state & ((1 << 53) - 1)


@dataclass(frozen=True)
class RandomRedrawn(Method):
    """Keeps a random subset of what is there."""

    def scores(self, seen):
        return drawn(seen).double()
