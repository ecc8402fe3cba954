"""The runner: cells in, rows out. It knows tasks, engine, store and tracking, and never a method by name.

The unit is the sample, not the point: each distinct prefill runs once, every cell forks from it, and all cells
decode together.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from omegaconf import DictConfig, OmegaConf

from pvcbench import codehash, environment, excerpts, receipts, settings, store
from pvcbench import config as configuration
from pvcbench.analysis.run import run_observations
from pvcbench.attempt import Protocol, finite, run_batch
from pvcbench.budgets import parse_budgets
from pvcbench.cells import OBSERVATION, Point, points
from pvcbench.checks import check_prompts, check_question, check_reach
from pvcbench.contract import prepare
from pvcbench.engine.engine import Engine
from pvcbench.generate import Generate
from pvcbench.identity import identity, told
from pvcbench.measure import run_measurements
from pvcbench.models import LoadedModel
from pvcbench.progress import Meter
from pvcbench.respond import run_documents
from pvcbench.result import Result, report, stored
from pvcbench.score import Continuation, Streaming
from pvcbench.shards import Plan, Shard
from pvcbench.tasks.base import Task


def sound(work: Callable[..., list[dict]]) -> Callable[..., list[dict]]:
    """Work whose rows hold finite numbers only: a row with any other says so and has no result."""
    return lambda *arguments: [finite(row) for row in work(*arguments)]


KINDS = {
    "generate": sound(partial(run_batch, Generate)),
    "continuation": sound(partial(run_batch, Continuation)),
    "streaming": sound(partial(run_batch, Streaming)),
    "lm_eval": sound(run_documents),
    "observe": sound(run_observations),
    "measure": sound(run_measurements),
}


def run(
    config: DictConfig,
    model: LoadedModel | None = None,
    task: Task | None = None,
    methods=None,
    planned: Callable[[Plan], None] = lambda plan: None,
) -> Result:
    """Runs what the configuration says, or what is missing of it; objects given stand in for their configuration.

    `planned` is told what will be measured before anything is.
    """
    settings.check(config)
    budgets = parse_budgets(OmegaConf.to_container(config.budgets))
    shard = Shard.parse(config.shard)
    asked, given = config, (model, task, methods) != (None, None, None)
    config = told(config, model, task, methods)
    methods = configuration.build_methods(config.methods) if methods is None else methods
    task = configuration.build(config.task, "the task") if task is None else task
    check_question(config, task)
    cells = cells_of(config, task, methods, budgets)
    torch.set_num_threads(configuration.threads_of(config.threads))
    device = configuration.device_of(config.device)
    task.check_device(device)
    task.validate()
    loaded = model or configuration.build(config.model, "the model", device=device, dtype=config.dtype)
    known = identity(config, loaded, task, cells)
    folder = store.RunFolder(config.results, config.experiment, known, shard)
    files = None if loaded.files is None else {**loaded.files, **receipts.marks(codehash.FILES)}
    existing = folder.open(stored(config), environment.of_run(known, loaded.model))
    try:
        plan, measured = _measure(config, loaded, task, cells, folder, existing, planned)
    finally:
        folder.close()
    if shard is not None:
        return report_shard(config, folder, task, measured, plan)
    result = report(config, folder.path, task, measured, plan.samples)
    if not given:
        receipts.keep(asked, folder.path, task, plan.samples, files)
    return result


def _measure(config, loaded, task, cells, folder, existing, planned) -> tuple[Plan, int]:
    """Runs every (sample, cell) that has no row yet; returns what was asked and how many rows were added."""
    task.prepare(loaded.prompter())
    total = min(config.limit or task.size(config.seed), task.size(config.seed))
    again = [row for row in existing if row["error"] is not None and folder.writes(row)] if config.retry_failed else []
    answered = {store.key_of(row) for row in existing} - {store.key_of(row) for row in again}
    work, names = [], []
    for index in range(total):
        if folder.shard is not None and not folder.shard.owns(index):
            continue
        sample = task.sample(config.seed, index)
        names.append(sample.id)
        missing = tuple(point for point in cells if (sample.id, point.name, point.label) not in answered)
        if missing:
            work.append((sample, task.encode(sample), missing))
    plan = Plan(folder.path, tuple(names), tuple((point.name, point.label) for point in cells), total)
    planned(plan)
    return plan, _work(config, loaded, task, cells, folder, work, len(names)) if work else 0


def _work(config, loaded, task, cells, folder, work, total: int) -> int:
    """Measures the cells that each of these samples lacks; returns how many rows were added."""
    check_prompts(work, loaded, task, config.query_aware)
    engine = Engine(loaded.model, loaded.attention, config.engine.backend, loaded.evict_sliding, config.engine.chunk)
    protocol = Protocol(config.query_aware, config.refeed_last, config.decode, config.seed)
    added = 0
    try:
        prepare(engine, cells, holds(config, task))
        if task.reads_on:
            engine.require_continuing()
        check_reach(engine, work, task)
        with Meter(total=total, done=total - len(work)) as meter:
            for batch in batches(work, config.batch, config.query_aware):
                rows = KINDS[task.kind](engine, loaded, task, batch, protocol, meter)
                folder.append(rows)
                if not added:  # once rows can be written; no result needs excerpts
                    excerpts.add(folder.rows_path, task.kind, work, loaded.tokenizer)
                added += len(rows)
                meter.finish(len(batch))
    finally:
        engine.release()
    return added


def holds(config: DictConfig, task: Task) -> bool:
    """Whether a run evicts after every token, or every few."""
    return config.decode == "hold" or bool({"streaming", "blockwise"} & set(task.protocols))


def cells_of(config: DictConfig, task: Task, methods, budgets: Sequence[int | float]) -> list[Point]:
    """The cells of a run: methods at budgets; of tasks that observe, what samples show by themselves comes first."""
    if task.kind != "observe":
        return points(methods, budgets, config.decode, task.protocols)
    if not task.uses_methods:
        return [OBSERVATION]
    cells = points(methods, budgets, "grow", task.protocols)
    return [OBSERVATION, *(point for point in cells if not point.method.reference)]


def batches(work: Sequence[tuple], size: int, query_aware: bool) -> Iterator[list[tuple]]:
    """Groups of samples with equal lengths and equal cells, so that prompts are never padded."""
    waiting: dict[tuple, list[tuple]] = {}
    for item in work:
        sample, prompt, missing = item
        alone = any(point.method is None or point.method.ragged_batch for point in missing)
        key = (len(prompt.ids), None if query_aware else prompt.context_tokens, prompt.ends, sample.stop, missing)
        group = waiting.setdefault(key, [])
        group.append(item)
        if alone or len(group) == size:
            yield waiting.pop(key)
    yield from waiting.values()


def report_shard(config: DictConfig, folder: store.RunFolder, task: Task, measured: int, plan: Plan) -> Result:
    """The report if the whole run is finished and nobody writes it any more, else a note on what is missing."""
    with store.locks.alone(folder.path) as alone:
        rows = store.read_rows(folder.path)
        missing = max(0, plan.total * len(plan.cells) - len(rows))
        if alone and not missing:  # samples take time to make: only now, and rows of a larger limit may be among them
            names = [task.sample(config.seed, index).id for index in range(plan.total)]
            missing = len(plan.keys(names) - {store.key_of(row) for row in rows})
            if not missing:
                return report(config, folder.path, task, measured, names)
    state = f"{missing} cells of the run have no row yet" if missing else "another shard is still being written"
    note = (
        f"Shard {config.shard} is finished: {len(plan.samples)} samples, {measured} rows added in {folder.path}; "
        f"{state}. The last shard makes the table, or the same command without shard=."
    )
    empty = store.pd.DataFrame()
    return Result(folder.path, store.pd.DataFrame(rows), empty, empty, [], None, measured, note)
