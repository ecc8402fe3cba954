"""All pictures and tables over runs: `results/figures` and `results/tables`, functions of the rows below `results`.

    figures_over_runs.draw(load_table("results"), Path("results"))

Each setting (`settings`) gets pictures and tables, named after the experiment and, where it has several, a run.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from pvcbench import analyses
from pvcbench.plots import drawn_from, published, run_figures
from pvcbench.plots import experiment as claims
from pvcbench.report import markdown_latex, settings
from pvcbench.stats import significance, summaries

Table = Callable[[], pd.DataFrame]  # computed once, when it is first asked for


@dataclass(frozen=True)
class Drawing:
    """One picture or table: the folder and name it gets, the hash of its data, and what makes it."""

    folder: str
    name: str
    data: str
    make: Callable[[], "Figure | dict[str, str] | None"]


def drawings(rows: pd.DataFrame) -> Iterator[Drawing]:
    """Everything that is drawn over all runs, with the hash of its data; nothing is drawn yet."""
    for name, own in settings.groups(rows):
        report, beside = analyses.reporter(own), published.beside(own)
        data = drawn_from.fingerprint(own, beside)
        if report is not None and own["error"].isna().any():
            yield Drawing("tables", name, data, partial(_frame, report, own, name, data))
        if report is None and own["score"].notna().any():
            if own["run"].nunique() > 1:  # of one run its own folder has it
                yield Drawing("figures", f"curve_{name}", data, partial(run_figures.curve, own))
            compared, times = cache(partial(significance.compared, own)), claims.decode_times(rows, own)
            made = partial(_pareto, own, compared, times)
            yield Drawing("figures", f"pareto_{name}", drawn_from.fingerprint(own, times), made)
            if _paired(own):
                made = partial(_differences, own, compared)
                yield Drawing("figures", f"differences_{name}", drawn_from.fingerprint(own), made)
            yield Drawing("tables", name, data, partial(_scores, own, compared, beside, name, data))
            if summaries.headline(own)["stratum"].nunique() > 1:
                yield Drawing("tables", f"{name}_sets", drawn_from.fingerprint(own), partial(_sets, own, name))


def _paired(rows: pd.DataFrame) -> bool:
    """Whether any sample has a score of the full cache and one of a method."""
    scored = rows[rows["score"].notna()]
    full = scored["reference"].astype(bool)
    return scored[~full]["sample"].isin(scored[full]["sample"]).any()


def _pareto(rows: pd.DataFrame, compared: Table, times: pd.DataFrame) -> Figure:
    return claims.pareto(rows, compared(), times)


def _differences(rows: pd.DataFrame, compared: Table) -> Figure | None:
    return claims.differences(rows, compared())


def _scores(rows: pd.DataFrame, compared: Table, beside: pd.DataFrame, name: str, data: str) -> dict[str, str]:
    table, notes = markdown_latex.scores(rows, compared(), beside)
    return markdown_latex.texts(table, notes, name.replace("_", " "), data)


def _sets(rows: pd.DataFrame, name: str) -> dict[str, str]:
    frame, notes = markdown_latex.by_set(rows)
    return markdown_latex.texts(frame, notes, f"{name.replace('_', ' ')} by data set", drawn_from.fingerprint(rows))


def _frame(report, rows: pd.DataFrame, name: str, data: str) -> dict[str, str]:
    """The summary of an analysis or of speeds, as its run's own table has it."""
    notes = [f"{rows['task'].iloc[0].replace('_', ' ')}, {rows['model'].iloc[0]}"]
    notes.append(report.intervals)
    frame = markdown_latex.plain(report.tables(rows)["summary"])
    return markdown_latex.texts(frame, notes, name.replace("_", " "), data)


def draw(rows: pd.DataFrame, results: Path) -> Iterator[Path]:
    """Draws all of it below `results` and removes what was drawn there before and is no longer; yields the paths."""
    written: dict[str, list[Path]] = {"figures": [], "tables": []}
    for drawing in drawings(rows):
        folder = results / drawing.folder
        if drawing.folder == "figures":
            paths = run_figures.save(partial(_made, drawing), folder, drawing.data)
        else:
            paths = _write(drawing, folder)
        written[drawing.folder] += paths
        yield from paths
    for name, paths in written.items():
        drawn_from.tidy(results / name, paths)


def _made(drawing: Drawing) -> Iterator[tuple[str, Figure | None]]:
    yield drawing.name, drawing.make()


def _write(drawing: Drawing, folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for ending, text in drawing.make().items():
        paths.append(folder / f"{drawing.name}.{ending}")
        paths[-1].write_text(text, encoding="utf-8")
    drawn_from.record(folder, paths)
    return paths


def complaints(rows: pd.DataFrame, results: Path) -> Iterator[str]:
    """What is stale, missing or orphaned in `results/figures` and `results/tables`, where anything was drawn."""
    expected: dict[str, dict[str, str]] = {"figures": {}, "tables": {}}
    for drawing in drawings(rows):
        expected[drawing.folder][drawing.name] = drawing.data
    for name, hashes in expected.items():
        folder = results / name
        yield from drawn_from.complaints(folder, hashes.get)
        known = {Path(file).stem for file in drawn_from.listed(folder)}
        for stem in sorted(set(hashes) - known) if known else ():
            yield f"missing: {folder / stem} (never drawn)"
