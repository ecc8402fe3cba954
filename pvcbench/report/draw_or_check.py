"""All figures and tables below a folder of results: drawn again, or checked against the rows."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from pvcbench.plots import drawn_from
from pvcbench.report import figures_over_runs
from pvcbench.runs import result


def whole(rows: pd.DataFrame, results: Path) -> bool:
    """Whether a folder is one of results, not an experiment's or a run's: only there is anything drawn over runs."""
    return {Path(folder).parent.parent for folder in rows["folder"].unique()} == {results}


def draw(rows: pd.DataFrame, results: Path) -> Iterator[Path]:
    """Draws and yields the paths."""
    for folder, run in rows.groupby("folder"):
        yield from result.draw(run, Path(folder) / "figures")
        result.tables(run, Path(folder))
    if whole(rows, results):
        yield from figures_over_runs.draw(rows, results)


def undrawn(rows: pd.DataFrame, results: Path) -> tuple[list[Path], int]:
    """The folders that nothing was ever drawn into, and how many there are that would be drawn into."""
    measured = rows[rows["error"].isna()]
    folders = [Path(folder) / "figures" for folder in measured["folder"].unique()]
    if whole(rows, results):
        folders += [results / name for name in sorted({drawing.folder for drawing in figures_over_runs.drawings(rows)})]
    return [folder for folder in folders if not drawn_from.listed(folder)], len(folders)


def complaints(rows: pd.DataFrame, results: Path) -> Iterator[str]:
    """What was drawn below a folder and is not as it would be drawn now, in a line each."""
    folders = set()
    for folder, run in rows.groupby("folder"):
        own = Path(folder) / "figures"
        folders.add(own)
        data = drawn_from.data_of(run)
        yield from drawn_from.complaints(own, lambda stem, data=data: data)
    if whole(rows, results):
        folders |= {results / "figures", results / "tables"}
        yield from figures_over_runs.complaints(rows, results)
    for path in sorted(results.rglob(drawn_from.LIST)):
        if path.parent not in folders:  # benchmarks draw JSON files
            hashes = {
                Path(name).stem: drawn_from.source_hash(path.parent, name) for name in drawn_from.listed(path.parent)
            }
            yield from drawn_from.complaints(path.parent, hashes.get)
