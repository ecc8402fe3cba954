"""What a run's rows come to, whatever its task: its summary, the tables in its folder, its figures."""

from pathlib import Path

import pandas as pd

from pvcbench import analyses
from pvcbench.plots import drawn_from, run_figures
from pvcbench.stats import perplexity


def tables(rows: pd.DataFrame, folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The summary of a run and that of all its parts; an analysis has a summary only, and more tables beside it."""
    report = analyses.reporter(rows)
    if report is None:
        return perplexity.tables(rows, folder)
    found = report.tables(rows)
    for name, table in found.items():
        table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g", lineterminator="\n")
    return found["summary"], found["summary"]


def draw(rows: pd.DataFrame, folder: Path) -> list[Path]:
    """Draws every figure that the rows of one run allow, as PNG and SVG, and returns the paths.

    Figures of earlier drawings that these rows no longer give are removed.
    """
    report = analyses.reporter(rows)
    if report is None:
        paths = run_figures.draw(rows, folder)
    else:
        paths = run_figures.save(lambda: report.figures(rows), folder, drawn_from.data_of(rows))
    drawn_from.tidy(folder, paths)
    return paths
