"""Random eviction: the floor of every curve.

Each entry's score is a draw that depends on the run's seed, the sample, the layer, the KV head and the position only,
so it stays the same through decoding, in any batch and on any device.
"""

from dataclasses import dataclass

from pvcbench.policy import Method, torch


def scramble(state):
    """SplitMix64's finalizer (Steele et al. 2014) on int64 tensors, whose products wrap around."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        state = (state ^ ((state >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return state ^ ((state >> 31) & ((1 << 33) - 1))


@dataclass(frozen=True)
class Random(Method):
    """Keeps a uniformly random subset of the entries of each layer and KV head."""

    def scores(self, seen):
        heads = torch.arange(seen.positions.shape[1], device=seen.positions.device)[:, None]
        state = scramble(scramble(seen.draws[:, None, None]) + seen.layer)
        state = scramble(scramble(state + heads) + seen.positions)
        return (state & ((1 << 53) - 1)).double()
