"""Means so far: what a run that is still being measured shows of its cells."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

Cell = tuple[str, str]  # method and budget


@dataclass
class RunningMeans:
    """The mean score of every cell over the rows that have come in, means of data sets first, as in the summary.

    They are no results: samples are still missing, and there are no intervals.
    """

    metric: str = "score"
    sums: dict[Cell, dict[str, list[float]]] = field(default_factory=dict)  # by data set: rows and their sum
    least: float = 0.0
    most: float = 1.0

    def add(self, rows: Iterable[Mapping]) -> None:
        """Counts rows in; those without a score or a method say nothing here."""
        for row in rows:
            score, method = row.get("score"), row.get("method")
            if score is None or method is None:
                continue
            self.metric = next(iter(row.get("metrics") or {self.metric: None}))
            counted = self.sums.setdefault((method, row["budget"]), {}).setdefault(row.get("stratum") or "", [0, 0.0])
            counted[0] += 1
            counted[1] += score
            self.least, self.most = min(self.least, score), max(self.most, score)

    def means(self) -> dict[Cell, float]:
        """The mean score of every cell that has one."""
        return {
            cell: sum(total / count for count, total in sets.values()) / len(sets) for cell, sets in self.sums.items()
        }

    @property
    def shares(self) -> bool:
        """Whether all scores lie between 0 and 1, so that they read well in per cent."""
        return self.least >= 0.0 and self.most <= 1.0
