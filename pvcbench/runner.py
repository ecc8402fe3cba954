"""The runner: cells in, rows out. It knows tasks, engine, store and tracking, and never a method by name.

The unit is the sample, not the point: each distinct prefill runs once, every cell forks from it, and all cells
decode together.
"""

import hashlib
import inspect
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from pvcbench import config as configuration
from pvcbench import environment, outcome, store, tracking
from pvcbench.analysis.run import run_observations
from pvcbench.attempt import Protocol, run_batch
from pvcbench.cells import OBSERVATION, Point, parse_budgets, points
from pvcbench.engine import engine as engines
from pvcbench.engine.check import check
from pvcbench.engine.engine import Engine
from pvcbench.errors import UserError
from pvcbench.generate import Generate
from pvcbench.measure import run_measurements
from pvcbench.models import LoadedModel
from pvcbench.policy import Method
from pvcbench.progress import Meter
from pvcbench.prompts import Prompt, Prompter
from pvcbench.respond import run_documents
from pvcbench.score import Continuation, Streaming
from pvcbench.tasks.base import Sample, Task


@dataclass
class Result:
    """What a run leaves behind."""

    folder: Path
    rows: "store.pd.DataFrame"
    summary: "store.pd.DataFrame"  # by method and budget
    parts: "store.pd.DataFrame"  # the same for every data set and group, where there are several
    figures: list[Path]
    tracked: str | None
    measured: int  # rows added now; 0 when the run was finished before


KINDS = {
    "generate": partial(run_batch, Generate),
    "continuation": partial(run_batch, Continuation),
    "streaming": partial(run_batch, Streaming),
    "lm_eval": run_documents,
    "observe": run_observations,
    "measure": run_measurements,
}


def run(config: DictConfig, model: LoadedModel | None = None, task: Task | None = None, methods=None) -> Result:
    """Runs what the configuration says, or what is missing of it; objects given stand in for their configuration."""
    tracking.check_mode(config.wandb.mode)
    budgets = parse_budgets(OmegaConf.to_container(config.budgets))
    if config.decode not in ("grow", "hold"):
        raise UserError(f"decode must be grow or hold, not {config.decode!r}")
    if config.batch < 1 or (config.limit is not None and config.limit < 1):
        raise UserError("batch and limit must be 1 or more")
    methods = configuration.build_methods(config.methods) if methods is None else methods
    task = configuration.build(config.task, "the task") if task is None else task
    check_question(config, task)
    cells = cells_of(config, task, methods, budgets)
    torch.set_num_threads(configuration.threads_of(config.threads))
    device = configuration.device_of(config.device)
    task.check_device(device)
    loaded = model or configuration.build(config.model, "the model", device=device, dtype=config.dtype)
    folder = store.RunFolder(config.results, config.experiment, identity(config, loaded, task, cells))
    existing = folder.open(OmegaConf.to_container(config), environment.describe())
    try:
        measured = _measure(config, loaded, task, cells, folder, existing)
    finally:
        folder.close()
    return report(config, folder, task, measured)


def identity(config: DictConfig, loaded: LoadedModel, task: Task, cells: Sequence[Point]) -> dict:
    """Everything that changes a number, for the run id; not limit, batch, places or tracking.

    Nor threads and machine, unless the numbers are speeds.
    """
    device = configuration.device_of(config.device)
    threads = configuration.threads_of(config.threads)
    machine = {"hardware": environment.hardware(device), "threads": threads} if task.kind == "measure" else {}
    return machine | {
        "model": loaded.identity,
        "device": torch.device(device).type,
        "task": {"name": task.name, "version": task.version, "data": task.data_checksum()}
        | json.loads(json.dumps(task.settings(), default=_plain)),
        "methods": {point.name: _method_identity(point.method) for point in cells if point.method is not None},
        "budgets": [repr(budget) for budget in parse_budgets(OmegaConf.to_container(config.budgets))]
        if cells != [OBSERVATION]
        else [],
        "engine": {"version": engines.VERSION, "backend": config.engine.backend, "chunk": config.engine.chunk},
        "query_aware": config.query_aware,
        "refeed_last": config.refeed_last,
        "decode": config.decode,
        "seed": config.seed,
    }


def _plain(value):
    return value.name if isinstance(value, Path) else str(value)


def _method_identity(method) -> dict:
    """A method's parameters and the hash of the files that define it, their siblings of like name included."""
    sources = [Path(inspect.getfile(kind)) for kind in type(method).__mro__ if issubclass(kind, Method)]
    ours = [path for path in sources if path.parent == sources[0].parent]  # the method and those it derives from
    family = sorted({sibling for path in ours for sibling in path.parent.glob(f"{path.stem}*.py")})
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in family)).hexdigest()
    settings = asdict(method) if is_dataclass(method) else dict(vars(method))
    for name in settings:  # a method that wraps another is both
        if isinstance(getattr(method, name), Method):
            settings[name] = _method_identity(getattr(method, name))
    return {"class": type(method).__qualname__, "source": digest, "settings": settings}


def _measure(config, loaded, task, cells, folder, existing) -> int:
    """Runs every (sample, cell) that has no row yet; returns how many rows were added."""
    task.prepare(Prompter(loaded.tokenizer, loaded.chat, loaded.longest))
    total = min(config.limit or task.size(config.seed), task.size(config.seed))
    answered = {(row["sample"], row["method"], row["budget"]) for row in existing}
    if config.retry_failed:
        answered -= {(row["sample"], row["method"], row["budget"]) for row in existing if row["error"] is not None}
    work = []
    for index in range(total):
        sample = task.sample(config.seed, index)
        missing = tuple(point for point in cells if (sample.id, point.name, point.label) not in answered)
        if missing:
            work.append((sample, task.encode(sample), missing))
    if not work:
        return 0
    check_prompts(work, loaded, task, config.query_aware)
    engine = Engine(loaded.model, loaded.attention, config.engine.backend, loaded.evict_sliding, config.engine.chunk)
    check(engine, rotates=any(getattr(point.method, "positions", None) == "cache" for point in cells))
    protocol = Protocol(config.query_aware, config.refeed_last, config.decode, config.seed)
    added = 0
    try:
        with Meter(total=total, done=total - len(work)) as meter:
            for batch in batches(work, config.batch, config.query_aware):
                rows = KINDS[task.kind](engine, loaded, task, batch, protocol, meter)
                folder.append(rows)
                added += len(rows)
                meter.finish(len(batch))
    finally:
        engine.release()
    return added


def cells_of(config: DictConfig, task: Task, methods, budgets: Sequence[int | float]) -> list[Point]:
    """The cells of a run: methods at budgets; of tasks that observe, what samples show by themselves comes first."""
    if task.kind != "observe":
        return points(methods, budgets, config.decode, task.protocols)
    if not task.uses_methods:
        return [OBSERVATION]
    cells = points(methods, budgets, "grow", task.protocols)
    return [OBSERVATION, *(point for point in cells if not point.method.reference)]


def check_question(config: DictConfig, task: Task) -> None:
    """Refuses protocols of a question for tasks that have none."""
    if not task.has_question and not config.query_aware:
        raise UserError(f"task={task.name} does not tell a context from a question: leave query_aware=true")
    if config.refeed_last and task.kind in ("continuation", "streaming", "observe", "measure"):
        raise UserError(f"task={task.name} generates nothing to score: leave refeed_last=false")


def check_prompts(
    work: Sequence[tuple[Sample, Prompt, tuple]], loaded: LoadedModel, task: Task, query_aware: bool
) -> None:
    """Refuses, before anything runs, prompts longer than the model or without the end of a context that is needed."""
    longest = None if task.beyond else loaded.longest
    for sample, prompt, _ in work:
        if not query_aware and prompt.context_tokens < 1:
            raise UserError(
                f"sample {sample.id}: context and question cannot be told apart in its cut prompt, which "
                "query_aware=false needs: raise task.max_length or leave the data set out"
            )
        if longest is not None and len(prompt.ids) + sample.max_new_tokens > longest:
            raise UserError(
                f"sample {sample.id} has {len(prompt.ids)} prompt tokens and {sample.max_new_tokens} to generate, "
                f"more than the model's {longest}: {task.shorten}, or use another model"
            )


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


def report(config: DictConfig, folder: store.RunFolder, task: Task, measured: int) -> Result:
    """Table, figures and tracking of a run, all from its rows."""
    rows = store.load(folder.path)
    summary, parts = outcome.tables(rows, folder.path)
    task.finish(rows, folder.path)
    drawn = outcome.draw(rows, folder.path / "figures")
    tracked = None
    if measured:
        stored = OmegaConf.to_container(config)
        name = f"{config.experiment}-{folder.id}"
        tracked = tracking.track(config.wandb, folder.id, name, stored, summary, drawn, folder.path, task=task.name)
    return Result(folder.path, rows, summary, parts, drawn, tracked, measured)
