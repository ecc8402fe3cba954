"""Paired differences between a method and others at the same measured size, over whole folders of results."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pvcbench.errors import UserError
from pvcbench.report import settings
from pvcbench.runs.rows import load_table, refuse_copies
from pvcbench.stats import significance

SAME_SIZE = 0.01  # of the full cache's bytes, and of the prompt's entries


def compare(folders: Sequence[Path], method: str, against: Sequence[str]) -> pd.DataFrame:
    """One line per folder and comparison, with `p_holm` over all of them."""
    lines, tables = [], [load_table(folder) for folder in folders]
    runs = pd.concat([table[["experiment", "run", "folder"]].drop_duplicates() for table in tables])
    refuse_copies(tuple(one) for one in runs.itertuples(index=False))
    for folder, table in zip(folders, tables, strict=True):
        for name, rows in settings.groups(table):
            for pair in against:
                other, _, budget = pair.partition("@")
                refuse_reference(rows, (method, other))
                if not (other and budget):
                    raise UserError(f"--against {pair}: write METHOD@BUDGET, for instance {other or 'METHOD'}@0.5")
                if lacking := {method, other} - set(rows["method"]):
                    known = ", ".join(sorted(set(rows["method"])))
                    raise UserError(f"{folder}: no method {' or '.join(sorted(lacking))} here: choose from {known}")
                try:
                    line = significance.versus(rows, method, other, budget)
                except ValueError as error:
                    raise UserError(f"{folder}: {error}") from error
                refuse_other_sizes(folder, line)
                lines.append({"run": name, **line})
    table = pd.DataFrame(lines)
    return table.assign(p_holm=significance.holm(table["p"]))


def refuse_reference(rows: pd.DataFrame, names: Sequence[str]) -> None:
    """Raises UserError where one of these is the full cache, which has no size in common with any method."""
    for name in names:
        if rows.loc[rows["method"] == name, "reference"].eq(True).any():
            raise UserError(
                f"{name} is the full cache, against which every run's table and summary.csv show each method: name "
                "two methods that were cut to one size"
            )


def refuse_other_sizes(folder: Path, line: dict) -> None:
    """Raises UserError where the two kept caches of unlike sizes, in bytes or in entries."""
    for measure, what in (("kept", "bytes"), ("entries", "entries")):
        one, two = line[measure], line[f"other_{measure}"]
        if abs(one - two) > SAME_SIZE:
            pair = f"{line['method']} and {line['other']} kept {one:.1%} and {two:.1%} of the {what}"
            raise UserError(f"{folder}: {pair} at {line['budget']}: not the same size")
