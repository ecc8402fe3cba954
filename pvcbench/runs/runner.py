"""The runner: work items in, rows out. It knows tasks, engine, store and tracking, and never a method by name.

The unit is the sample, not the point: each distinct prefill runs once, every cell forks from it, and all cells
decode together.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from pvcbench.config import settings
from pvcbench.config.shards import Shard
from pvcbench.errors import UserError
from pvcbench.evaluation.item import WorkItem
from pvcbench.models.loaded import LoadedModel
from pvcbench.places import marks
from pvcbench.policy import Method
from pvcbench.runs import code_hash, environment, known_rows, locks, prompt_excerpts, receipts
from pvcbench.runs.folder import RunFolder
from pvcbench.runs.identity import told
from pvcbench.runs.measuring import measured
from pvcbench.runs.plan import Plan
from pvcbench.runs.result import Mirror, Result, kept_config, report
from pvcbench.runs.rows import Key, key_of, read_rows, stored_rows
from pvcbench.runs.spec import RunSpec
from pvcbench.runs.wandb_mirror import Live
from pvcbench.stats.running import RunningMeans
from pvcbench.tasks.base import Task
from pvcbench.tasks.draws import problem_of, samples_of


@dataclass(frozen=True)
class Extent:
    """How far a run goes now and where its rows lie: nothing that changes a number."""

    results: str
    experiment: str
    limit: int | None
    shard: Shard | None
    retry_failed: bool
    reuse: bool

    @classmethod
    def of(cls, config: DictConfig) -> "Extent":
        """What a configuration says of it."""
        shard = Shard.parse(config.shard)
        return cls(config.results, config.experiment, config.limit, shard, config.retry_failed, config.reuse)


def run(
    config: DictConfig,
    model: LoadedModel | None = None,
    task: Task | None = None,
    methods: Mapping[str, Method] | None = None,
    planned: Callable[[Plan], None] = lambda plan: None,
    figures: bool = True,
) -> Result:
    """Runs what the configuration says, or what is missing of it; objects given stand in for their configuration.

    `planned` is told what will be measured before anything is; without `figures`, or where the configuration has
    `figures=false`, none are drawn.
    """
    settings.check(config)
    extent, asked, figures = Extent.of(config), OmegaConf.to_container(config), figures and config.figures
    given = (model, task, methods) != (None, None, None)
    config = told(config, model, task, methods)
    spec, mirror = RunSpec.of(config, task, methods), Mirror.of(config)
    loaded = spec.load(model)
    known = spec.identity(loaded)
    folder = RunFolder(extent.results, extent.experiment, known, extent.shard)
    files = None if loaded.files is None else {**loaded.files, **marks(code_hash.FILES)}
    existing = folder.open(kept_config(config), environment.of_run(known, loaded.model))
    with _live(spec, folder, mirror) as live:
        try:
            plan, work, taken = _planned(spec, extent, loaded, folder, existing)
            planned(plan)
            folder.append(taken)
            known_rows.tell(taken)
            existing = [*existing, *taken]
            added = len(taken) + (_measure(spec, loaded, folder, existing, plan, work, live) if work else 0)
        finally:
            folder.close()
        if extent.shard is not None:
            live.stop("finished", 0)  # the whole run's mirror is made by the last shard
            return report_shard(extent.shard, folder, spec.task, added, plan, mirror, figures)
        result = report(folder.path, spec.task, added, plan.samples, mirror, figures, live)
    if not (given or extent.retry_failed):
        receipts.keep(asked, folder.path, spec.task, plan.samples, files)
    return result


def _planned(
    spec: RunSpec, extent: Extent, loaded: LoadedModel, folder: RunFolder, existing: Sequence[Mapping]
) -> tuple[Plan, list[WorkItem], list[dict]]:
    """All samples and cells that are asked for, those that have no row yet, and rows that another run has of some."""
    task, seed = spec.task, spec.protocol.seed
    task.prepare(loaded.prompter())
    total = min(extent.limit or task.size(seed), task.size(seed))
    again = [row for row in existing if row["error"] is not None and folder.writes(row)] if extent.retry_failed else []
    answered = {key_of(row) for row in existing} - {key_of(row) for row in again}
    refuse_cells(folder.path, existing, spec)
    elsewhere = taken_from(spec, folder) if extent.reuse else {}
    work, names, taken = [], [], []
    for index in range(total):
        if folder.shard is not None and not folder.shard.owns(index):
            continue
        prompt = None  # of all draws, written where one of them lacks a cell
        for sample in samples_of(task, seed, index, spec.protocol.draws):
            names.append(sample.id)
            missing = tuple(point for point in spec.points if (sample.id, point.name, point.label) not in answered)
            if missing:
                prompt = prompt or task.encode(problem_of(sample))
                item, rows = known_rows.shared(WorkItem(sample, prompt, missing), elsewhere)
                work += [item] if item.points else []
                taken += rows
    refuse_samples(folder, existing, spec, names, total)
    cells = tuple((point.name, point.label) for point in spec.points)
    return Plan(folder.path, tuple(names), cells, total, spec.protocol.draws), work, taken


def taken_from(spec: RunSpec, folder: RunFolder) -> dict[Key, dict]:
    """Rows that other runs of the experiment have; none of speeds, which are the hour's as well."""
    if spec.kind.speeds:
        return {}
    counted = known_rows.counts_of(spec.task)
    return known_rows.known_rows(folder.path, folder.identity, folder.environment, counted)


def refuse_cells(folder: Path, rows: Sequence[Mapping], spec: RunSpec) -> None:
    """Refuses rows of cells that the run does not have."""
    cells = {(point.name, point.label) for point in spec.points}
    for row in rows:
        if (row["method"], row["budget"]) not in cells:
            _refuse(folder, row, f"of {row['method']} at budget {row['budget']}")


def refuse_samples(folder: RunFolder, rows: Sequence[Mapping], spec: RunSpec, names: Sequence[str], total: int) -> None:
    """Refuses rows of samples that the task does not have; those of an earlier, larger limit it has."""
    task, seed = spec.task, spec.protocol.seed
    own = {row["sample"]: row for row in rows if folder.shard is None or folder.home(row) == folder.rows_path}
    left = own.keys() - set(names)
    for index in range(total, task.size(seed)):
        if not left:
            return
        left -= {sample.id for sample in samples_of(task, seed, index, spec.protocol.draws)}
    if left:
        row = next(row for name, row in own.items() if name in left)
        _refuse(folder.path, row, f"of sample {row['sample']}")


def _refuse(folder: Path, row: Mapping, what: str) -> NoReturn:
    found = stored_rows(folder)[key_of(row)]
    raise UserError(
        f"{folder / found.file}, line {found.line + 1} is a row {what}, which this run cannot have: "
        "delete the line, or put it back into the run that measured it"
    )


def _live(spec: RunSpec, folder: RunFolder, mirror: Mirror) -> Live:
    """The W&B run of what is measured here: the whole run's, or a shard's own."""
    methods = dict.fromkeys(point.name for point in spec.points if point.method and not point.method.reference)
    part = "" if folder.shard is None else folder.shard.label
    return mirror.of_run(folder.path, spec.task.name, folder.identity["model"]["name"], list(methods), part)


def _measure(
    spec: RunSpec,
    loaded: LoadedModel,
    folder: RunFolder,
    existing: Sequence[Mapping],
    plan: Plan,
    work: Sequence[WorkItem],
    live: Live,
) -> int:
    """Measures what is missing and tells the run's W&B run of it; returns how many rows were added."""
    running, added, names = RunningMeans(), 0, set(plan.samples)
    running.add(row for row in existing if row["sample"] in names)
    done, before = len(names) - len(work), len(existing)
    live.begin()
    for rows in measured(spec, loaded, work, len(names), running):
        folder.append(rows)
        running.add(rows)
        if not added and spec.kind.excerpts:  # once rows can be written; no result needs excerpts
            prompt_excerpts.add(folder.rows_path, work, loaded.tokenizer)
        added += len(rows)
        done += len({row["sample"] for row in rows})
        live.tell(done, len(names), before + added, running)
    return added


def report_shard(
    shard: Shard, folder: RunFolder, task: Task, added: int, plan: Plan, mirror: Mirror, figures: bool
) -> Result:
    """The report if the whole run is finished and nobody writes it any more, else a note on what is missing."""
    with locks.alone(folder.path) as alone:
        rows = read_rows(folder.path)
        missing = max(0, plan.total * (plan.draws or 1) * len(plan.cells) - len(rows))
        if alone and not missing:  # samples take time to make: only now, and rows of a larger limit may be among them
            made = (samples_of(task, folder.identity["seed"], index, plan.draws) for index in range(plan.total))
            names = [sample.id for some in made for sample in some]
            missing = len(plan.keys(names) - {key_of(row) for row in rows})
            if not missing:
                return report(folder.path, task, added, names, mirror, figures)
    state = f"{missing} cells of the run have no row yet" if missing else "another shard is still being written"
    note = (
        f"Shard {shard.number}/{shard.of} is finished: {len(plan.samples)} samples, {added} rows added in "
        f"{folder.path}; {state}. The last shard makes the table, or the same command without shard=."
    )
    empty = pd.DataFrame()
    return Result(folder.path, pd.DataFrame(rows), empty, empty, [], None, added, note)
