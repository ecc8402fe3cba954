"""What a run measures, resolved once from its configuration: the runner and `verify` build it by the same function."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from omegaconf import DictConfig, OmegaConf

from pvcbench.config import building, processors
from pvcbench.config.budgets import parse_budgets
from pvcbench.engine import engine as engines
from pvcbench.engine.engine import Engine
from pvcbench.engine.passes import Writer
from pvcbench.engine.sampling import Sampling
from pvcbench.errors import UserError
from pvcbench.evaluation.cells import OBSERVATION, Point, evicts_while_reading, points
from pvcbench.evaluation.endings import Repeats
from pvcbench.evaluation.kinds import KINDS, Kind
from pvcbench.evaluation.preflight import check_question
from pvcbench.evaluation.row import Protocol
from pvcbench.models.loaded import LoadedModel
from pvcbench.policy import Method
from pvcbench.runs import environment, identity
from pvcbench.tasks.base import Task


@dataclass(frozen=True)
class RunSpec:
    """Everything that changes a number of a run; nothing behind it reads the configuration."""

    task: Task
    points: tuple[Point, ...]  # the cells of the run, the reference first
    budgets: tuple[int | float, ...]
    protocol: Protocol
    backend: str  # what computes attention mass
    chunk: int | None  # tokens per prefill call; None: the whole prompt
    batch: int  # samples that run together; rows do not depend on it but for the last digits
    device: str
    threads: int
    dtype: str | None
    model: Mapping  # how to load it

    @classmethod
    def of(cls, config: DictConfig, task: Task | None = None, methods: Mapping[str, Method] | None = None) -> "RunSpec":
        """The specification of a run; objects given stand in for their configuration. Raises UserError."""
        methods = building.build_methods(config.methods) if methods is None else methods
        task = building.build(config.task, "the task") if task is None else task
        own = config.query_aware, config.refeed_last, config.decode, config.seed, config.interval, config.prompt
        protocol = Protocol(*own, *answering(config), config.history, config.recompress)
        if protocol.answering and not KINDS[task.kind].samples:
            key = "sampling.temperature" if protocol.sampling else "stop_repeats.ngram"
            raise UserError(f"task={task.name} writes no answers to which {key} could apply: leave {key}=null")
        check_question(task, protocol, KINDS[task.kind].answers, methods)
        budgets = parse_budgets(OmegaConf.to_container(config.budgets))
        return cls(
            task=task,
            points=cells_of(task, methods, budgets, protocol),
            budgets=tuple(budgets),
            protocol=protocol,
            backend=config.engine.backend,
            chunk=config.engine.chunk,
            batch=config.batch,
            device=processors.device_of(config.device),
            threads=processors.threads_of(config.threads),
            dtype=config.dtype,
            model=config.model,
        )

    @property
    def kind(self) -> Kind:
        """What is done with the samples."""
        return KINDS[self.task.kind]

    @property
    def holds(self) -> bool:
        """Whether the run evicts after every token, or every few."""
        return self.protocol.decode == "hold" or evicts_while_reading(self.task.protocols)

    def load(self, model: LoadedModel | None = None) -> LoadedModel:
        """The model, loaded unless it is given, after what can be checked without it.

        The process computes with the run's threads from here on.
        """
        torch.set_num_threads(self.threads)
        self.task.check_device(self.device)
        self.task.validate()
        for point in self.points:
            if point.method is not None:
                point.method.validate(f"methods.{point.name}")
        return model or building.build(self.model, "the model", device=self.device, dtype=self.dtype)

    def engine(self, loaded: LoadedModel) -> Engine:
        """The engine on a model, which is the caller's to release; it writes text as the task's prompts are written."""
        prompter = getattr(self.task, "prompter", None) or loaded.prompter()
        writer = Writer(prompter.bare, prompter.after)
        return Engine(loaded.model, loaded.attention, self.backend, loaded.evict_sliding, self.chunk, writer)

    def identity(self, loaded: LoadedModel) -> dict:
        """Everything that changes a number, for the run id; threads and machine only where the numbers are speeds."""
        machine = {"hardware": environment.hardware(self.device), "threads": self.threads} if self.kind.speeds else {}
        engine = {"version": engines.VERSION, "backend": self.backend, "chunk": self.chunk}
        engine |= {"holding": engines.HOLDING} if self.protocol.decode == "hold" else {}
        budgets = () if self.points == (OBSERVATION,) else self.budgets
        methods = {point.name: point.method for point in self.points if point.method is not None}
        return machine | {
            "rules": identity.RULES,
            "model": identity.of_model(loaded),
            "device": self.device.partition(":")[0],
            "task": identity.of_task(self.task),
            "methods": {name: identity.of_method(method) for name, method in methods.items()},
            "budgets": [repr(budget) for budget in sorted(set(budgets), key=whole_first)],
            "engine": engine,
            "query_aware": self.protocol.query_aware,
            "refeed_last": self.protocol.refeed_last,
            "decode": self.protocol.decode,
            **self.protocol.eviction,
            **self.protocol.answering,
            **self.protocol.turns,
            "seed": self.protocol.seed,
        }


def answering(config: DictConfig) -> tuple[Sampling | None, Repeats | None]:
    """How answers are drawn, and when one that repeats is stopped; None where they are not."""
    drawn, repeats = (OmegaConf.to_container(config[name]) for name in ("sampling", "stop_repeats"))
    return (
        None if drawn["temperature"] is None else Sampling(**drawn),
        None if repeats["ngram"] is None else Repeats(**repeats),
    )


def whole_first(budget: int | float) -> tuple[bool, int | float]:
    """The order of budgets in an identity: entries, then shares; their order and repetitions change no number."""
    return isinstance(budget, float), budget


def cells_of(task: Task, methods: Mapping, budgets: list[int | float], protocol: Protocol) -> tuple[Point, ...]:
    """The cells of a run: methods at budgets; of tasks that observe, what samples show by themselves comes first."""
    if not KINDS[task.kind].observes:
        stays = protocol.prompt == "protected"
        return tuple(points(methods, budgets, protocol.decode, task.protocols, protocol.interval, stays))
    if protocol.eviction:
        raise UserError(f"task={task.name} generates nothing: leave interval=1 and prompt=counted")
    if not task.uses_methods:
        return (OBSERVATION,)
    cells = points(methods, budgets, "grow", task.protocols)
    return (OBSERVATION, *(point for point in cells if not point.method.reference))
