"""kvpress's turns beside bench_scoring's own: its prefill under observation against its plain one, length by length."""

import statistics
from collections.abc import Sequence

from peers.client import Peer, PeerDied, PeerFailed

OBSERVED = "ObservedAttention"


class PeerColumn:
    """kvpress's turns: its plain prefill and its ObservedAttention's, until it runs out of memory or of time."""

    def __init__(self, peer: Peer, limit: float):
        self.peer, self.limit = peer, limit
        self.last: tuple[int, float] | None = None  # the length that worked last, and what both prefills took
        self.killed: int | None = None  # the shortest length it was killed at

    def begin(self, length: int, turns: int) -> None:
        """Starts a length, unless it would take too long."""
        self.note, self.seconds = None, {None: [], OBSERVED: []}
        if self.killed is not None and length >= self.killed:
            self.note = f"not tried: killed at {self.killed} tokens"
        elif self.last is not None:  # attention, the larger part of it, grows with the square
            estimate = self.last[1] * (length / self.last[0]) ** 2 * turns
            if estimate > self.limit:
                self.note = f"not tried: about {estimate:.0f} s by the length before, the limit is {self.limit:.0f} s"

    def turn(self, length: int, counts: bool) -> None:
        """One prefill of each kind; the first turn of a length does not count."""
        if self.note is not None:
            return
        try:
            for press in self.seconds:
                spent = self.peer.ask("prefill", press=press, length=length)["seconds"]
                self.seconds[press] += spent if counts else []
        except PeerDied as error:
            self.note, self.killed = f"ran out of memory, it seems: {error}", length
            self.peer.start()
        except PeerFailed as error:
            self.note = str(error)

    def finish(self, length: int) -> dict:
        """The columns of a length."""
        plain, observed = self.seconds.values()
        column = {"peer_plain_s": median(plain) if plain else None, "peer_observed_s": None}
        column |= {"peer_ratio": None, "peer_ratio_range": None}
        if self.note is None:
            column |= {"peer_observed_s": median(observed)} | ratios("peer_ratio", observed, plain)
            self.last = length, statistics.median(observed) + statistics.median(plain)
        return column | {"peer_added_mib": self._added(length), "peer_note": self.note}

    def _added(self, length: int) -> float | None:
        if self.note is not None:
            return None
        try:
            return round(self.peer.peak_mib(OBSERVED, length) - self.peer.peak_mib(None, length), 1)
        except PeerFailed as error:
            self.note = f"its peak could not be measured: {error}"
            return None


def median(seconds: Sequence[float]) -> float:
    """The middle of some seconds, to a millisecond."""
    return round(statistics.median(seconds), 3)


def ratios(name: str, own: Sequence[float], plain: Sequence[float]) -> dict:
    """The median of the repeats' ratios, and their smallest and largest."""
    each = [one / other for one, other in zip(own, plain, strict=True)]
    return {name: round(statistics.median(each), 3), f"{name}_range": [round(min(each), 3), round(max(each), 3)]}
