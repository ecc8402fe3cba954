"""Scores stored answers again, after a metric has changed: needs neither the model nor the data.

pvcbench rescore results/FOLDER            # says what would change in every run below the folder
pvcbench rescore results/FOLDER --write    # replaces the row files; the first one stays as rows.jsonl.bak
"""

import contextlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pvcbench.config import building
from pvcbench.errors import UserError
from pvcbench.runs import locks
from pvcbench.runs.packed import unpacked
from pvcbench.runs.rows import read_rows, row_files, rows_by_file
from pvcbench.runs.stored import FROM_PYTHON, said, stored
from pvcbench.tasks.base import Sample, Task


@dataclass
class Rescoring:
    """What scoring a run again found: counts, and the scores before and after of each cell that changed."""

    rows: int
    answers: int = 0
    changed: int = 0
    cells: dict[tuple[str, str], list[tuple[float, float]]] = field(default_factory=dict)

    def add(self, other: "Rescoring") -> None:
        """Counts what another file of the same run has, too."""
        self.rows += other.rows
        self.answers += other.answers
        self.changed += other.changed
        for cell, scores in other.cells.items():
            self.cells.setdefault(cell, []).extend(scores)

    def line(self) -> str:
        """One line for people."""
        if not self.answers:
            return f"{self.rows} rows, none with an answer that its task scores: nothing to do"
        moved = []
        for (method, budget), scores in self.cells.items():
            before, after = (sum(column) / len(scores) for column in zip(*scores, strict=True))
            if any(old != new for old, new in scores):
                moved.append(f"{method} {budget}: {before:.4f} -> {after:.4f}")
        return "; ".join([f"{self.rows} rows, {self.changed} changed", *moved])


def sample_of(row: Mapping) -> Sample:
    """The row's sample as far as scoring needs it; the prompt's text is not stored."""
    return Sample(
        id=row["sample"],
        context="",
        question="",
        answers=tuple(row["answers"]),
        max_new_tokens=0,
        cluster=row.get("cluster", ""),
        stratum=row.get("stratum", ""),
        info=row["sample_info"],
        metric=next(iter(row["metrics"]), None),
    )


def rescored(task: Task, rows: Sequence[Mapping]) -> tuple[list[dict], Rescoring]:
    """The rows with new scores, and what changed; rows without an answer stay as they are, as do those of a task
    that does not score answers itself."""
    made, report = [], Rescoring(len(rows))
    scores = type(task).score is not Task.score
    for row in rows:
        if not scores or row.get("output") is None or row.get("error") is not None:
            made.append(dict(row))
            continue
        metrics = task.score(sample_of(row), row["output"])
        score = next(iter(metrics.values()))
        same = row["metrics"].keys() == metrics.keys() and all(
            _equal(row["metrics"][name], value) for name, value in metrics.items()
        )
        same = same and _equal(row["score"], score)
        made.append(dict(row) if same else {**row, "score": score, "metrics": metrics})
        report.answers += 1
        report.changed += not same
        before = row["score"] if row["score"] is not None else math.nan
        report.cells.setdefault((row["method"], row["budget"]), []).append((before, before if same else score))
    return made, report


def _equal(old: float | None, new: float) -> bool:
    return old is not None and math.isclose(old, new, rel_tol=1e-9, abs_tol=1e-12)


def task_of(folder: Path) -> Task:
    """The task of a stored run, built from its configuration."""
    known = stored(folder)
    try:
        node, name = known["config"]["task"], known["identity"]["task"]["name"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder} has no readable config.yaml that names its task: leave it out") from error
    if FROM_PYTHON in node:
        raise UserError(f"{folder} was measured with a task object, {said(node)}, not one of conf/task: leave it out")
    task = building.build(node, f"the task of {folder}")
    if task.name != name:
        raise UserError(f"{folder} was measured with a task object named {name!r}, not one of conf/task: leave it out")
    return task


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock that runs hold while they write."""
    with locks.alone(folder) as free:
        if not free:
            raise UserError(f"another process is writing {folder}: wait for it or stop it")
        yield


def replace(path: Path, rows: Sequence[Mapping]) -> None:
    """Writes all rows of a file whole or not at all; keeps the first version beside it."""
    kept, temporary = path.with_name(path.name + ".bak"), path.with_name(path.name + ".tmp")
    if not kept.exists():
        shutil.copy2(path, kept)
    temporary.write_text(
        "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows), encoding="utf-8"
    )
    temporary.replace(path)


def rescore(folder: Path, write: bool) -> Rescoring:
    """Scores one run again, every row file of it, and, if told to and anything changed, stores it."""
    task, total = task_of(folder), Rescoring(0)
    with locked(folder) if write else contextlib.nullcontext():
        rows_by_file(folder)  # refuses what two files have
        for path in row_files(folder):
            rows, report = rescored(task, read_rows(path))
            total.add(report)
            if write and report.changed:
                replace(unpacked(path), rows)
    return total
