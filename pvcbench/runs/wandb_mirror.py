"""A mirror of a run in Weights & Biases: how far it is, scores so far, and at the end its curves, tables and files.

The rows on disk are the results; whatever goes wrong here is one line on stderr and changes nothing. A run that goes on
continues its W&B run: the id is the run's. wandb/mirrored.json in its folder tells what was mirrored last: a run whose
mirror failed, or that is now wanted online, is mirrored by running the same command again.
"""

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from pvcbench.runs.rows import row_files
from pvcbench.stats.running import RunningMeans

AXIS, ENTRIES = "cache/bytes_fraction", "cache/fraction"  # of the full cache's bytes; of entries in layers that evict
DONE = "progress/samples"
RECORD = "wandb/mirrored.json"
FILES = ("config.yaml", "environment.json", "sessions.jsonl", "summary.csv")  # of the artifact, beside the rows
EVERY = 5.0  # seconds between two messages of a run that goes on
STEPS = 8  # W&B steps for each row: what is logged after the last row has room before the next session's first
NUMBERS = ("kept_bytes", "kept_fraction", "mib", "score", "difference")  # of each cell, in the run's summary


class Settings(Protocol):
    """What tracking needs of the configuration."""

    mode: str
    project: str
    entity: str | None
    group: str | None  # None: the experiment's name


def mirrored(settings: Settings, folder: Path, rows: int) -> bool:
    """Whether these settings have mirrored so many rows of a run before, or want no mirror."""
    if settings.mode == "disabled":
        return True
    try:
        return json.loads((folder / RECORD).read_text(encoding="utf-8")) == _record(settings, rows)
    except (OSError, ValueError):
        return False


def _record(settings, rows: int) -> dict:
    return {"mode": settings.mode, "project": settings.project, "entity": settings.entity, "rows": rows}


@dataclass(frozen=True)
class Named:
    """What W&B calls a run: its id, and what people look for it by."""

    run: str
    experiment: str  # the group, unless the settings name one
    task: str  # the job type
    model: str
    methods: Sequence[str]
    part: str = ""  # of a shard, which has a W&B run of its own while it measures

    @property
    def id(self) -> str:
        """The id in W&B: the run's."""
        return f"{self.run}-{self.part}" if self.part else self.run

    @property
    def title(self) -> str:
        """The name in W&B's list: what is measured on what, and the run's id."""
        methods = ", ".join(self.methods) if len(self.methods) <= 3 else f"{len(self.methods)} methods"
        return " ".join(filter(None, [self.model, methods, self.id]))


class Live:
    """A run of W&B, open while rows come in and until its pictures are drawn.

    What fails in it is one line, and the measuring goes on.
    """

    def __init__(self, settings: Settings, named: Named, config: Mapping[str, Any], folder: Path):
        self.settings, self.named, self.config, self.folder = settings, named, config, folder
        self.run, self.spoke = None, -EVERY

    @contextlib.contextmanager
    def _guarded(self):
        """What goes wrong inside is told in one line, and this W&B run is given up."""
        try:
            yield
        except Exception as error:  # a run must not fail because its mirror does
            self.run = None
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            told = f"the results are safe in {self.folder}, and the same command mirrors them again"
            print(f"pvcbench: wandb failed ({reason}); {told}", file=sys.stderr)
            if isinstance(error, ConnectionError):
                _forget_service()

    def begin(self) -> None:
        """Begins or continues the W&B run, unless there shall be none or it is open."""
        if self.settings.mode != "disabled" and self.run is None:
            with self._guarded():
                self.run = _open(self.settings, self.named, self.config, self.folder)

    def __enter__(self) -> "Live":
        return self

    def __exit__(self, kind, error, _) -> None:
        """Marks what ended by an exception while the W&B run was open."""
        if isinstance(error, KeyboardInterrupt):
            self.stop("stopped", getattr(error, "code", 130))
        elif error is not None:
            self.stop("failed", 1)

    def tell(self, done: int, total: int, rows: int, running: RunningMeans) -> None:
        """Logs how many samples are done and the scores so far, every few seconds and with the last sample."""
        if self.run is None or (time.monotonic() - self.spoke < EVERY and done < total):
            return
        self.spoke = time.monotonic()
        means = {f"running/{method}/{budget}": mean for (method, budget), mean in running.means().items()}
        with self._guarded():
            self.run.log({DONE: done, "progress/share": done / max(1, total), **means}, step=rows * STEPS, commit=True)

    def conclude(self, summary: pd.DataFrame, figures: Iterable[Path], rows: int) -> str | None:
        """Logs curves, table, pictures and files and ends the W&B run; returns its folder (offline) or address."""
        if self.settings.mode == "disabled":
            return None
        place = None
        with self._guarded():
            self.run = self.run or _open(self.settings, self.named, self.config, self.folder)
            try:
                place = _conclude(self.run, self.settings, self.named, summary, figures, self.folder)
            except Exception:
                self.run.summary["state"] = "failed"
                self.run.finish(exit_code=1)
                raise
            self.run.finish()
            record = json.dumps(_record(self.settings, rows)) + "\n"
            (self.folder / RECORD).write_text(record, encoding="utf-8")
        self.run = None
        return place

    def stop(self, state: str, code: int) -> None:
        """Ends the W&B run of a run that was stopped or failed, or of a shard, and marks it so."""
        if self.run is None:
            return
        with self._guarded():
            self.run.summary["state"] = state
            self.run.finish(exit_code=code)
        self.run = None


def _forget_service() -> None:
    """Lets go of a W&B service that is gone: the next mirror starts another, and nothing is said at the exit."""
    import wandb

    with contextlib.suppress(Exception):  # it fails, since it would say goodbye first
        wandb.teardown(exit_code=1)
    os.environ.pop("WANDB_SERVICE", None)


def _open(settings, named: Named, config, folder):
    """W&B's run, begun or continued."""
    os.environ.setdefault("WANDB_SILENT", "true")  # read when wandb is imported: no banners, no question for a key
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    run = wandb.init(
        mode=settings.mode,
        project=settings.project,
        entity=settings.entity,
        id=named.id,
        name=named.title,
        group=settings.group or named.experiment,
        job_type=named.task,
        tags=[word[:64] for word in dict.fromkeys([named.task, named.model, *named.methods]) if word],
        resume="allow",
        config=dict(config),
        dir=folder,
        reinit="create_new",
        settings=_quiet(wandb.Settings),
    )
    for axis in (AXIS, ENTRIES, DONE):
        run.define_metric(axis)
    run.define_metric(f"{named.task}/*", step_metric=AXIS)
    run.define_metric("running/*", step_metric=DONE)
    run.summary["state"] = "measuring"  # what stays where the process is killed
    return run


def _conclude(run, settings, named: Named, summary, figures, folder) -> str:
    """The curves, the table, the pictures and the files of a run that is measured; returns where they are."""
    import wandb

    for point in points(summary, named.task):
        run.log(point)
    cells = summary.astype(object).where(summary.notna(), None)
    run.log({"table": wandb.Table(columns=list(cells.columns), data=cells.to_numpy().tolist())})
    run.log({f"figures/{path.stem}": wandb.Image(str(path)) for path in figures if path.suffix == ".png"})
    run.log_artifact(_artifact(wandb, named, folder, Path(run.settings.sync_dir) / "artifact"))
    run.summary.update(numbers(summary))
    run.summary["state"] = "finished"
    return run.url if settings.mode == "online" else str(Path(run.settings.sync_dir))


def _artifact(wandb, named: Named, folder: Path, place: Path):
    """The rows and files of a run as they are now, copied beside the W&B run, from where they are uploaded."""
    artifact = wandb.Artifact(f"run-{named.run}", type="results", description="rows and configuration of one run")
    place.mkdir(parents=True, exist_ok=True)
    for path in [*row_files(folder), *(folder / name for name in FILES)]:
        if path.exists():
            copy = shutil.copyfile(path, place / f"{path.name}.copy")  # no name by which runs are found
            artifact.add_file(str(copy), name=path.name, policy="immutable")  # no further copy in the home folder
    return artifact


def _quiet(settings):
    """Settings that print nothing, read no code, no git and no machine, and never wait for long."""
    silent = {"silent": True, "quiet": True, "console": "off", "symlink": False}
    private = {"save_code": False, "disable_code": True, "disable_git": True, "disable_job_creation": True}
    private |= {"host": "", "x_disable_meta": True, "x_disable_stats": True, "x_disable_machine_info": True}
    patience = {"login_timeout": 30, "init_timeout": 30, "finish_timeout": 120, "finish_timeout_raises": True}
    return settings(**silent, **private, **patience, x_save_requirements=False)


def points(summary: pd.DataFrame, task: str) -> list[dict[str, float]]:
    """What is logged: for each method its scores by measured size, smallest first.

    Means over some samples only are a series of their own, `.../incomplete`: on no method's curve.
    """
    found = []
    if "score" not in summary:  # an analysis: its table and its figures say it
        return found
    for method, cells in summary[summary["score"].notna()].groupby("method", sort=False):
        for _, cell in cells.sort_values("kept_fraction").iterrows():
            name = f"{task}/{method}" + ("" if cell["complete"] else "/incomplete")
            point = {ENTRIES: float(cell["kept_fraction"]), name: float(cell["score"])}
            point |= {AXIS: float(cell["kept_bytes"])} if pd.notna(cell["kept_bytes"]) else {}
            point["cache/samples"] = int(cell["samples"])  # a run that goes on draws its curve again, from more samples
            ends = {f"{name}/{end}": float(cell[end]) for end in ("low", "high") if np.isfinite(cell[end])}
            found.append(point | ends)
    return found


def numbers(summary: pd.DataFrame) -> dict[str, float]:
    """The known numbers of each cell as flat keys such as `cells/h2o/0.25/score`.

    Those of some samples only are `cells/h2o/0.25/incomplete/score`, so that nobody sorts them among the others.
    """
    found = {}
    for _, cell in summary.iterrows():
        name = f"cells/{cell['method']}/{cell['budget']}" + ("" if cell.get("complete", True) else "/incomplete")
        found |= {f"{name}/{key}": float(cell[key]) for key in NUMBERS if key in cell and pd.notna(cell[key])}
    return found
