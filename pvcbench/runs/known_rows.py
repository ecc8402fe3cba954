"""Rows that other runs of the experiment have: a method added to a finished run does not measure the others again.

A row is known where another run has the sample in the same cell and its identity says that the number would be the
same: all of it equal but for the methods, the budgets and how many samples there are, and the cell's own method equal.
It is copied, and says by `measured_in` which run measured it.
"""

import json
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from pvcbench.errors import UserError
from pvcbench.evaluation.item import WorkItem
from pvcbench.evaluation.row import SCHEMA
from pvcbench.runs import stored
from pvcbench.runs.rows import Key, key_of, read_rows
from pvcbench.runs.run_id import essence
from pvcbench.runs.sessions import refuse_other_weights
from pvcbench.tasks.base import Task

CELLS = ("methods", "budgets")  # the parts of an identity that say which cells a run has


def known_rows(folder: Path, identity: Mapping, environment: Mapping, counted: Collection[str] = ()) -> dict[Key, dict]:
    """The rows that runs beside this folder have of its cells, by sample, method and budget.

    `counted` are settings of the task that only say how many samples there are (`counts_of`). A run that cannot be
    read, whose configuration was altered, or that was measured with other weights, is passed over, and said to be.
    """
    found: dict[Key, dict] = {}
    for other, known, methods in alike(folder, identity, counted):
        try:
            stored.refuse_altered(other / "config.yaml", known, other.name)
            refuse_other_weights(other, environment)
            rows = read_rows(other)
        except UserError as error:
            print(f"pvcbench: nothing is taken from {other}: {error}", file=sys.stderr)
            continue
        for row in rows:
            if row["method"] in methods and row["error"] is None and row.get("schema") == SCHEMA:
                found.setdefault(key_of(row), {"measured_in": other.name, **row})
    return found


def shared(item: WorkItem, rows: Mapping[Key, dict]) -> tuple[WorkItem, list[dict]]:
    """What of a sample is still to be measured, and the rows of the same prompt that are known already."""
    known = {point: rows.get((item.sample.id, point.name, point.label)) for point in item.points}
    taken = {point: row for point, row in known.items() if row and row["prompt_sha256"] == item.prompt.sha256}
    return item.of(*(point for point in item.points if point not in taken)), list(taken.values())


def counts_of(task: Task) -> Collection[str]:
    """Settings of a task that only say how many samples it has, as its own class declares them.

    A class that derives from it may do something else with them.
    """
    return vars(type(task)).get("counted", ())


def alike(folder: Path, identity: Mapping, counted: Collection[str]) -> Iterator[tuple[Path, Mapping, set[str]]]:
    """Runs beside a folder that differ in methods and budgets alone: configuration, and the methods that do not."""
    own, methods = text(rest(identity, counted)), identity["methods"]
    for path in sorted(folder.parent.glob("*/config.yaml")):
        known = None if path.parent == folder else stored.read(path)
        if known is None or "rules" not in known["identity"] or text(rest(known["identity"], counted)) != own:
            continue
        theirs = known["identity"]["methods"]
        same = {name for name, method in methods.items() if name in theirs and text(theirs[name]) == text(method)}
        if same:
            yield path.parent, known, same


def rest(identity: Mapping, counted: Collection[str]) -> dict:
    """An identity without what says which cells and how many samples a run has, and without the name of its weights."""
    left = {key: value for key, value in essence(identity).items() if key not in CELLS}
    return left | {"task": {key: value for key, value in left["task"].items() if key not in counted}}


def text(value: object) -> str:
    """A part of an identity as text, equal where it is stored equal."""
    return json.dumps(value, sort_keys=True)


def tell(rows: Iterable[Mapping]) -> None:
    """Says how many rows were taken, and from where."""
    rows = list(rows)
    if rows:
        runs = ", ".join(sorted({row["measured_in"] for row in rows}))
        print(f"{len(rows)} rows are taken from {runs}, which measured them (reuse=true)", file=sys.stderr, flush=True)
