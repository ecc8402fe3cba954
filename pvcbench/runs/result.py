"""What a run leaves behind, made of its rows alone: tables, figures and tracking; torch is not needed for it."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf

from pvcbench import analyses
from pvcbench.plots import drawn_from, run_figures
from pvcbench.runs import figure_cache, wandb_mirror
from pvcbench.runs.rows import load_table
from pvcbench.stats import drawn_answers, failures, perplexity
from pvcbench.tasks.base import Task


@dataclass
class Result:
    """What a run leaves behind."""

    folder: Path
    rows: pd.DataFrame
    summary: pd.DataFrame  # by method and budget
    parts: pd.DataFrame  # the same for every data set and group, where there are several
    figures: list[Path]
    tracked: str | None
    measured: int  # rows added now; 0 when the run was finished before
    note: str | None = None  # what a shard of an unfinished run says, which has no summary yet
    more: int = 0  # samples of a larger limit that the folder and its figures have beside those asked for

    @property
    def failed(self) -> list[str]:
        """A line for every method that failed in all of its cells; what is out of its reach is no failure."""
        return broken(self.rows)


def broken(rows: pd.DataFrame) -> list[str]:
    """A line for every method none of whose cells has a value, for a reason that is a failure."""
    lines = []
    for method, failed in failures.broken(rows):
        who = "of the observations" if method is None else f"of {method}"
        asked = rows["method"].isna() if method is None else rows["method"] == method
        lines.append(
            f"no cell {who} has a value ({asked.sum()} rows): {failed['error'].iloc[0]}; "
            "the same command with retry_failed=true measures them again"
        )
    return lines


def kept_config(config: DictConfig) -> dict:
    """The configuration as the run's folder keeps it, without which shard came first and whether figures are drawn."""
    kept = OmegaConf.to_container(config)
    for name in ("shard", "figures"):
        kept.pop(name, None)
    return kept


@dataclass(frozen=True)
class Mirror:
    """How a run is mirrored in W&B: the settings, the group it belongs to, and what is shown as its configuration."""

    settings: Mapping
    experiment: str
    config: Mapping

    @classmethod
    def of(cls, config: DictConfig) -> "Mirror":
        """What a configuration says of it."""
        return cls(config.wandb, config.experiment, kept_config(config))

    def of_run(self, folder: Path, task: str, model: str, methods: Sequence[str], part: str = "") -> wandb_mirror.Live:
        """The W&B run of a folder; `part` names the shard that is measured, if it is one."""
        named = wandb_mirror.Named(folder.name, self.experiment, task, model, tuple(methods), part)
        return wandb_mirror.Live(self.settings, named, self.config, folder)


def report(
    folder: Path,
    task: Task,
    measured: int,
    asked: Sequence[str],
    mirror: Mirror,
    figures: bool = True,
    live: wandb_mirror.Live | None = None,
) -> Result:
    """Tables, figures and tracking of a run, all from its rows; the result is of the samples asked for now.

    `live` is the W&B run that is open since the measuring began.
    """
    rows = load_table(folder)
    summary, parts = tables(rows, folder)
    if drawn_answers.worth_a_table(rows):
        drawn_answers.table(rows).to_csv(folder / "answers.csv", index=False, float_format="%.6g", lineterminator="\n")
    task.finish(rows, folder)
    drawn = figure_cache.figures(rows, folder, draw) if figures else []
    tracked = None
    if measured or not wandb_mirror.mirrored(mirror.settings, folder, len(rows)):
        with live or mirror.of_run(folder, task.name, rows["model"].iloc[0], methods_of(rows)) as open_run:
            tracked = open_run.conclude(summary, drawn, len(rows))
    own = rows[rows["sample"].isin(asked)].reset_index(drop=True)
    more = rows["sample"].nunique() - own["sample"].nunique()
    if more:
        with tempfile.TemporaryDirectory() as place:  # the folder's own tables go on showing every row
            summary, parts = tables(own, Path(place))
    return Result(folder, own, summary, parts, drawn, tracked, measured, more=more)


def methods_of(rows: pd.DataFrame) -> list[str]:
    """The methods that are compared in some rows: all but the full cache."""
    named = rows[rows["method"].notna()]
    if "reference" in named:
        named = named[~named["reference"].eq(True)]
    return list(named["method"].unique())


def tables(rows: pd.DataFrame, folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The summary of a run and that of all its parts; an analysis has a summary only, and more tables beside it."""
    report = analyses.reporter(rows)
    if report is None:
        return perplexity.tables(rows, folder)
    found = report.tables(rows)
    for name, table in found.items():
        table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g", lineterminator="\n")
    return found["summary"], found["summary"]


def pictures(rows: pd.DataFrame) -> Iterator[tuple[str, Figure | None]]:
    """The figures of one run by name, a curve's or an analysis'; None where its rows have nothing to show of it."""
    report = analyses.reporter(rows)
    return run_figures.pictures(rows) if report is None else report.figures(rows)


def draw(rows: pd.DataFrame, folder: Path) -> list[Path]:
    """Draws every figure that the rows of one run allow, as PNG and SVG, and returns the paths.

    Figures of earlier drawings that these rows no longer give are removed.
    """
    paths = run_figures.save(lambda: pictures(rows), folder, drawn_from.data_of(rows))
    drawn_from.tidy(folder, paths)
    return paths
