"""Shards: several processes that measure one run, each its own samples (`shard=2/4`: those whose index % 4 is 1)."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pvcbench.errors import UserError


@dataclass(frozen=True)
class Shard:
    """Part `number`, counted from one, of a run cut into `of` parts."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str | None) -> "Shard | None":
        """The shard that `2/4` names, or None for a whole run."""
        if text is None:
            return None
        match = re.fullmatch(r"(\d+)/(\d+)", str(text))
        shard = cls(*map(int, match.groups())) if match else None
        if shard is None or not 1 <= shard.number <= shard.of:
            raise UserError(f"shard must be a part of a whole such as 1/4 or 4/4, not {text!r}")
        return shard

    @property
    def label(self) -> str:
        """The shard as part of a file's name."""
        return f"{self.number}of{self.of}"

    def owns(self, index: int) -> bool:
        """Whether the sample with this index belongs to the shard."""
        return index % self.of == self.number - 1


@dataclass(frozen=True)
class Plan:
    """What a process will measure: where its rows go, the ids of its samples, its cells; the whole run's samples."""

    folder: Path
    samples: tuple[str, ...]
    cells: tuple[tuple[str | None, str | None], ...]  # method and budget
    total: int

    def keys(self, samples: Iterable[str]) -> set[tuple]:
        """What rows of these samples answer, as `store.key_of` has it."""
        return {(sample, *cell) for sample in samples for cell in self.cells}
