"""A mirror of a run in Weights & Biases: one curve per method, accuracy against the measured share of the bytes.

The rows on disk are the results; whatever goes wrong here is one line on stderr and changes nothing. A run that goes on
continues its W&B run: the id is the run's. wandb/mirrored.json in its folder tells what was mirrored last: a run whose
mirror failed, or that is now wanted online, is mirrored by running the same command again.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

AXIS, ENTRIES = "cache/bytes_fraction", "cache/fraction"  # of the full cache's bytes; of entries in layers that evict
RECORD = "wandb/mirrored.json"
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


def track(
    settings: Settings,
    run_id: str,
    experiment: str,
    config: Mapping[str, Any],
    summary: pd.DataFrame,
    figures: Iterable[Path],
    folder: Path,
    task: str,
    rows: int,
) -> str | None:
    """Mirrors a run; returns its folder (offline) or address (online), None when it is disabled or failed.

    W&B groups runs by `settings.group`, else by experiment, and calls the task their job type.
    """
    if settings.mode == "disabled":
        return None
    try:
        place = _mirror(settings, run_id, experiment, config, summary, figures, folder, task)
        (folder / RECORD).write_text(json.dumps(_record(settings, rows)) + "\n", encoding="utf-8")
        return place
    except Exception as error:  # a run must not fail because its mirror does
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        told = f"the results are safe in {folder}, and the same command mirrors them again"
        print(f"pvcbench: wandb failed ({reason}); {told}", file=sys.stderr)
        if isinstance(error, ConnectionError):
            _forget_service()
        return None


def _forget_service() -> None:
    """Lets go of a W&B service that is gone: the next mirror starts another, and nothing is said at the exit."""
    import wandb

    with contextlib.suppress(Exception):  # it fails, since it would say goodbye first
        wandb.teardown(exit_code=1)
    os.environ.pop("WANDB_SERVICE", None)


def _mirror(settings, run_id, experiment, config, summary, figures, folder, task) -> str:
    os.environ.setdefault("WANDB_SILENT", "true")  # read when wandb is imported: no banners, no question for a key
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    run = wandb.init(
        mode=settings.mode,
        project=settings.project,
        entity=settings.entity,
        id=run_id,
        name=f"{experiment}-{run_id}",
        group=settings.group or experiment,
        job_type=task,
        resume="allow",
        config=dict(config),
        dir=folder,
        reinit="create_new",
        settings=_quiet(wandb.Settings),
    )
    try:
        for axis in (AXIS, ENTRIES):
            run.define_metric(axis)
        run.define_metric(f"{task}/*", step_metric=AXIS)
        for point in points(summary, task):
            run.log(point)
        cells = summary.astype(object).where(summary.notna(), None)
        run.log({"table": wandb.Table(columns=list(cells.columns), data=cells.to_numpy().tolist())})
        run.log({f"figures/{path.stem}": wandb.Image(str(path)) for path in figures if path.suffix == ".png"})
        run.summary.update(numbers(summary))
        place = run.url if settings.mode == "online" else str(Path(run.settings.sync_dir))
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()
    return place


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
