"""All pictures and tables over runs: `results/figures` and `results/tables`, functions of the rows below `results`.

    paper.draw(store.load("results"), Path("results"))

Runs that differ in their seed alone are joined. What one experiment's folder holds in several settings gets a picture
and a table each, named after the experiment and a run.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import pandas as pd
import yaml
from matplotlib.figure import Figure

from pvcbench import analysis, claims, drawn, figures, paper_tables, published, significance
from pvcbench.errors import UserError

Table = Callable[[], pd.DataFrame]  # computed once, when it is first asked for


@dataclass(frozen=True)
class Drawing:
    """One picture or table: the folder and name it gets, the hash of its data, and what makes it."""

    folder: str
    name: str
    data: str
    make: Callable[[], "Figure | dict[str, str] | None"]


def groups(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows of each setting by name: the experiment's, with a run's id where the experiment has several settings."""
    settings: dict[tuple[str, str], list[pd.DataFrame]] = {}
    for folder, run in rows.groupby("folder"):
        settings.setdefault((run["experiment"].iloc[0], setting_of(Path(folder))), []).append(run)
    experiments = [experiment for experiment, _ in settings]
    for (experiment, _), runs in settings.items():
        alone = experiments.count(experiment) == 1
        yield experiment if alone else f"{experiment}-{runs[0]['run'].iloc[0]}", joined(runs)


def setting_of(folder: Path) -> str:
    """What a run measured, its seed aside."""
    try:
        stored = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["identity"]
    except (OSError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"{folder} has no readable config.yaml: move it out of the results") from error
    return json.dumps({key: value for key, value in stored.items() if key != "seed"}, sort_keys=True)


def joined(runs: list[pd.DataFrame]) -> pd.DataFrame:
    """The rows of runs of several seeds as one table; a document that two seeds drew stays one cluster."""
    if len(runs) == 1:
        return runs[0]
    return pd.concat([run.assign(sample=run["run"] + "/" + run["sample"]) for run in runs], ignore_index=True)


def drawings(rows: pd.DataFrame) -> Iterator[Drawing]:
    """Everything that is drawn over all runs, with the hash of its data; nothing is drawn yet."""
    for name, own in groups(rows):
        report, beside = analysis.reporter(own), published.beside(own)
        data = drawn.fingerprint(own, beside)
        if report is not None and own["error"].isna().any():
            yield Drawing("tables", name, data, partial(_frame, report, own, name, data))
        if report is None and own["score"].notna().any():
            compared, times = cache(partial(significance.compared, own)), claims.decode_times(rows, own)
            made = partial(_pareto, own, compared, times)
            yield Drawing("figures", f"pareto_{name}", drawn.fingerprint(own, times), made)
            if _paired(own):
                made = partial(_differences, own, compared)
                yield Drawing("figures", f"differences_{name}", drawn.fingerprint(own), made)
            yield Drawing("tables", name, data, partial(_scores, own, compared, beside, name, data))


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
    table, notes = paper_tables.scores(rows, compared(), beside)
    return paper_tables.texts(table, notes, name.replace("_", " "), data)


def _frame(report, rows: pd.DataFrame, name: str, data: str) -> dict[str, str]:
    """The summary of an analysis or of speeds, as its run's own table has it."""
    notes = [f"{rows['task'].iloc[0].replace('_', ' ')}, {rows['model'].iloc[0]}"]
    notes.append(getattr(report, "INTERVALS", "95% intervals over samples, from ten on"))
    frame = paper_tables.plain(report.tables(rows)["summary"])
    return paper_tables.texts(frame, notes, name.replace("_", " "), data)


def draw(rows: pd.DataFrame, results: Path) -> Iterator[Path]:
    """Draws all of it below `results` and removes what was drawn there before and is no longer; yields the paths."""
    written: dict[str, list[Path]] = {"figures": [], "tables": []}
    for drawing in drawings(rows):
        folder = results / drawing.folder
        if drawing.folder == "figures":
            paths = figures.save(partial(_made, drawing), folder, drawing.data)
        else:
            paths = _write(drawing, folder)
        written[drawing.folder] += paths
        yield from paths
    for name, paths in written.items():
        drawn.tidy(results / name, paths)


def _made(drawing: Drawing) -> Iterator[tuple[str, Figure | None]]:
    yield drawing.name, drawing.make()


def _write(drawing: Drawing, folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for ending, text in drawing.make().items():
        paths.append(folder / f"{drawing.name}.{ending}")
        paths[-1].write_text(text, encoding="utf-8")
    drawn.record(folder, paths)
    return paths


def complaints(rows: pd.DataFrame, results: Path) -> Iterator[str]:
    """What is stale, missing or orphaned in `results/figures` and `results/tables`; draws nothing."""
    expected: dict[str, dict[str, str]] = {"figures": {}, "tables": {}}
    for drawing in drawings(rows):
        expected[drawing.folder][drawing.name] = drawing.data
    for name, hashes in expected.items():
        folder = results / name
        yield from drawn.complaints(folder, hashes.get)
        known = {Path(file).stem for file in drawn.listed(folder)}
        for stem in sorted(set(hashes) - known):
            yield f"missing: {folder / stem} (never drawn)"
