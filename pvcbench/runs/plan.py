"""What a process will measure of a run, told before it begins."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Plan:
    """What a process will measure: where its rows go, the ids of its samples, its cells; the whole run's samples."""

    folder: Path
    samples: tuple[str, ...]
    cells: tuple[tuple[str | None, str | None], ...]  # method and budget
    total: int
    draws: int | None = None  # answers to each sample, of which each is one; None: they are greedy

    def keys(self, samples: Iterable[str]) -> set[tuple]:
        """What rows of these samples answer, as `store.key_of` has it."""
        return {(sample, *cell) for sample in samples for cell in self.cells}
