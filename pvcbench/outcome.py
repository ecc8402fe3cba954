"""What a run's rows come to, whatever its task: its summary, the tables in its folder, its figures."""

from pathlib import Path

import pandas as pd

from pvcbench import analysis, drawn, figures, likelihood


def tables(rows: pd.DataFrame, folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The summary of a run and that of all its parts; an analysis has a summary only, and more tables beside it."""
    report = analysis.reporter(rows)
    if report is None:
        return likelihood.tables(rows, folder)
    found = report.tables(rows)
    for name, table in found.items():
        table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g", lineterminator="\n")
    return found["summary"], found["summary"]


def draw(rows: pd.DataFrame, folder: Path) -> list[Path]:
    """Draws every figure that the rows of one run allow, as PNG and SVG, and returns the paths.

    Figures of earlier drawings that these rows no longer give are removed.
    """
    report = analysis.reporter(rows)
    if report is None:
        paths = figures.draw(rows, folder)
    else:
        paths = figures.save(lambda: report.figures(rows), folder, drawn.data_of(rows))
    drawn.tidy(folder, paths)
    return paths
