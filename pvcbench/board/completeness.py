"""What a run lacks: samples and cells that were asked for and have no row."""

from collections.abc import Collection, Mapping
from pathlib import Path

import pandas as pd

from pvcbench.errors import UserError
from pvcbench.runs import prompt_excerpts, rescore
from pvcbench.runs.stored import stored

NAMED = 5  # samples that are named


def missing(rows: pd.DataFrame, known: Mapping, excerpts: Collection[str]) -> list[str]:
    """A sentence for everything that the run's own files show to be missing.

    `known` is what config.yaml holds; `excerpts` are the samples that excerpts were written of when measuring began.
    """
    measured, found = set(rows["sample"]), cells_without_rows(rows, known["identity"])
    cells = rows[["method", "budget"]].drop_duplicates()
    parts = rows.groupby("sample").size()
    partial = parts[parts < len(cells)]
    if len(partial):
        found.append(f"{listed(partial.index)}: {len(partial)} of {len(measured)} samples lack some of the cells")
    waiting = [name for name in excerpts if name not in measured]
    if waiting:
        found.append(f"{listed(waiting)}: {len(waiting)} samples were begun and have no row")
    limit = known["config"].get("limit")
    if isinstance(limit, int) and limit > len(measured):
        found.append(f"limit={limit} asks for more samples than the {len(measured)} measured")
    return found


def cells_without_rows(rows: pd.DataFrame, identity: Mapping) -> list[str]:
    """Methods, and budgets of methods, that the run's identity has and no row."""
    cells = rows[["method", "budget"]].drop_duplicates()
    budgets = {name: set(own["budget"]) for name, own in cells.groupby("method")}
    found = [f"{name}: no row at all" for name in identity["methods"] if name not in budgets and budgets]
    references = set(rows[rows["reference"].astype(bool)]["method"])
    for name in sorted(set(budgets) - references):
        lacking = [budget for budget in identity["budgets"] if budget not in budgets[name]]
        if lacking and len(lacking) < len(identity["budgets"]):
            found.append(f"{name}: no row at {', '.join(lacking)}")
    return found


def listed(names) -> str:
    """Some names of many."""
    return ", ".join(str(name)[:60] for name in list(names)[:NAMED]) + (" ..." if len(names) > NAMED else "")


def size(folder: Path) -> int:
    """How many samples the run's task has, told without the model's weights; raises UserError where it cannot be."""
    known = stored(folder)
    task = rescore.task_of(folder)
    task.validate()
    task.prepare(prompt_excerpts.prompter_of(known["config"]["model"]))
    return task.size(known["config"].get("seed", 0))


def unmeasured(folder: Path, samples: int) -> tuple[list[str], str | None]:
    """A sentence where the task has more samples than were measured and no limit was set; else why that is unknown."""
    if stored(folder)["config"].get("limit") is not None:
        return [], None
    try:
        total = size(folder)
    except UserError as error:
        return [], str(error)
    return ([f"{samples} of the task's {total} samples are measured"] if total > samples else []), None
