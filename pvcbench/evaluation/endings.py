"""How a generated answer ends: by a text that stops it, by tokens that repeat too often, or because it is too long."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

SPARE = 16  # tokens that are read with those of a stop text: some hold no letter, some only part of one


@dataclass(frozen=True)
class Repeats:
    """Tokens that repeat: the last `ngram` of an answer stand in it `times` times or more."""

    ngram: int = 10
    times: int = 5

    def ends(self, tokens: Sequence[int]) -> bool:
        """Whether an answer ends like that."""
        if len(tokens) < self.ngram:
            return False
        last = tuple(tokens[-self.ngram :])
        starts = range(len(tokens) - self.ngram + 1)
        return sum(tuple(tokens[start : start + self.ngram]) == last for start in starts) >= self.times


@dataclass
class Ending:
    """Whether an answer is complete, asked after each of its tokens; a step costs the same however long it is.

    `decode` gives the text of tokens. Only the last ones are read for a stop text; where they hold one, all are.
    """

    decode: Callable[[list[int]], str]
    stops: Sequence[str] = ()
    repeats: Repeats | None = None
    seen: dict[int, Counter] = field(default_factory=dict)  # by row: how often each run of tokens came

    def __call__(self, row: int, tokens: list[int]) -> bool:
        return self._stops(tokens) or self._repeats(row, tokens)

    def _stops(self, tokens: list[int]) -> bool:
        if not self.stops:
            return False
        read = SPARE + max(len(stop.encode()) for stop in self.stops)
        return self._stopped(tokens[-read:]) and (len(tokens) <= read or self._stopped(tokens))

    def _stopped(self, tokens: list[int]) -> bool:
        text = self.decode(tokens)
        return any(stop in text for stop in self.stops)

    def _repeats(self, row: int, tokens: list[int]) -> bool:
        if self.repeats is None or len(tokens) < self.repeats.ngram:
            return False
        counts, last = self.seen.setdefault(row, Counter()), tuple(tokens[-self.repeats.ngram :])
        counts[last] += 1
        return counts[last] >= self.repeats.times
