"""StreamingLLM: attention sinks and a recent window (Xiao et al. 2023, arXiv 2309.17453; mit-han-lab/streaming-llm).

The first `sinks` tokens and the newest `budget - sinks` stay. At `positions: cache`, the official default, keys are
rotated to their place inside the cache, so the gap between sinks and window closes; `positions: original` leaves it.
Used after a full prefill; its streaming prefill belongs to the streaming protocol.
"""

from dataclasses import dataclass

from pvcbench.policy import Method, UserError


@dataclass(frozen=True)
class StreamingLLM(Method):
    """Scores entries by how recent they are, sinks above all."""

    sinks: int = 4
    positions: str = "cache"

    def __post_init__(self):
        if self.positions not in ("cache", "original"):
            raise UserError(f"streaming_llm: positions must be cache or original, not {self.positions!r}")

    def protects(self, budget, shape):
        return self.sinks, 0

    def scores(self, seen):
        return seen.positions.double()
