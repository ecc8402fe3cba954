"""Loads lm-eval's tasks and has lm-eval build their requests, with the seeds of lm_eval.simple_evaluate."""

import contextlib
import difflib
import io
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pvcbench.errors import UserError

PROTOCOLS = {"loglikelihood": "continuation", "generate_until": "generate", "loglikelihood_rolling": "streaming"}
SEEDS = {"random": 0, "numpy": 1234, "few-shot": 1234}


@dataclass(frozen=True)
class Document:
    """One document of one lm-eval task and lm-eval's requests for it, in order."""

    task: str
    number: int
    instances: tuple

    @property
    def id(self) -> str:
        return f"{self.task}/{self.number}"


class Loaded:
    """lm-eval's task objects and groups by name."""

    def __init__(self, names: Sequence[str], folder: Path | None, num_fewshot: int | None):
        random.seed(SEEDS["random"])
        np.random.seed(SEEDS["numpy"])
        with quiet():
            manager = manager_of(names, folder)
            names = list(names) or manager.all_subtasks
            unknown = [name for name in names if name not in manager.all_tasks]
            if unknown or not names:
                raise UserError(explain_unknown(unknown[0] if unknown else "", manager.all_tasks))
            try:
                loaded = manager.load(names)
            except Exception as error:
                reason = " ".join(str(error).split())[:200]
                raise UserError(f"cannot load {', '.join(names)}: {reason} (a hub's data need a network)") from error
        self.tasks, self.groups = loaded["tasks"], loaded.get("groups", {})
        for name, task in self.tasks.items():
            if getattr(task, "MULTIMODAL", False):
                raise UserError(f"lm-eval task {name} asks about more than text: leave it out")
            if getattr(task, "UNSAFE_CODE", False):
                raise UserError(f"lm-eval task {name} runs generated code: use `pvcbench lm-eval` for it")
            own = task.get_config("num_fewshot")
            if own != 0 and (num_fewshot is not None or own is None):  # a task that says 0 keeps it
                task.set_config("num_fewshot", num_fewshot or 0)
        self._state = random.getstate(), np.random.get_state()

    def documents(self, limit: int | None, template: Callable | None) -> list[Document]:
        """The first documents of every task with their requests: the first of each task, then the second, ..."""
        rounds: dict[tuple[int, int, str], list] = {}
        random.setstate(self._state[0])
        np.random.set_state(self._state[1])
        settings = {"apply_chat_template": template is not None, "chat_template": template}
        for order, (name, task) in enumerate(self.tasks.items()):
            task.set_fewshot_seed(SEEDS["few-shot"])
            with quiet():
                task.build_all_requests(limit=limit, fewshot_as_multiturn=True, **settings)
            for instance in sorted(task.instances, key=lambda instance: instance.idx):
                rounds.setdefault((instance.doc_id, order, name), []).append(instance)
        return [Document(name, number, tuple(rounds[number, order, name])) for number, order, name in sorted(rounds)]


def manager_of(names: Sequence[str], folder: Path | None):
    """lm-eval's index of tasks: of the user's folder alone where that has all that is asked for, which is quicker."""
    from lm_eval.tasks import TaskManager

    if folder is None:
        return TaskManager()
    own = TaskManager(include_path=str(folder), include_defaults=False)
    return own if set(names) <= set(own.all_tasks) else TaskManager(include_path=str(folder))


def protocols_of(documents: Sequence[Document]) -> tuple[str, ...]:
    """What methods must support; refuses scores of two units in one run."""
    rolling = {item.task: None for item in documents if item.instances[0].request_type == "loglikelihood_rolling"}
    if rolling and len(rolling) < len({item.task for item in documents}):
        raise UserError(
            f"the scores of {', '.join(rolling)} are likelihoods, unlike the other tasks': give them a run of their own"
        )
    return tuple(dict.fromkeys(PROTOCOLS[one.request_type] for item in documents for one in item.instances))


def explain_unknown(name: str, known: Sequence[str]) -> str:
    """One line for a name that lm-eval does not know, or for a folder without tasks."""
    if not name:
        return "task.include_path: the folder holds no YAML task of lm-eval"
    close = difflib.get_close_matches(name, known, n=1)
    return f"unknown lm-eval task {name!r}: " + (
        f"did you mean {close[0]!r}?" if close else "`lm-eval ls tasks` lists them"
    )


@contextlib.contextmanager
def quiet(bars: bool = True) -> Iterator[None]:
    """Keeps lm-eval's log below errors and, with `bars`, progress bars off the terminal."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()) if bars else contextlib.nullcontext():
            yield
    finally:
        logger.setLevel(level)
