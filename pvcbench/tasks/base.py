"""What a task is: samples that are pure functions of (seed, index), and scores of what a model said."""

import inspect
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from pvcbench.errors import TaskError, UserError


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation: what is asked, and the answer that later turns have before them (golden history)."""

    question: str
    answer: str


@dataclass(frozen=True)
class Sample:
    """One prompt with its gold answers; spans are character ranges of the context, by name.

    A turn of a conversation is a sample of its own: `question` and `answers` are that turn's, `turns` those of the
    whole conversation, and `context_id` is the conversation's name, the same for all of its turns.
    """

    id: str
    context: str
    question: str
    answers: tuple[str, ...]
    max_new_tokens: int
    cluster: str = ""  # what resamples together: the context, or the sample itself, unless named
    stratum: str = ""  # means are taken within a stratum (a data set) first, then over strata
    stop: tuple[str, ...] = ()  # the answer ends at the first of these
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    info: Mapping[str, object] = field(default_factory=dict)  # depth, length, ...: columns of the row
    metric: str | None = None  # where the task's metric differs from sample to sample
    context_id: str = ""  # samples that ask about one and the same context name it alike
    problem: str = ""  # of one of several sampled answers (see `tasks.draws`): the id of the sample that it is of
    draw: int | None = None  # and its number
    turns: tuple[Turn, ...] = ()  # all turns of the conversation that this sample is a turn of
    turn: int = 0  # which of them it is, counted from 1; 0: a question by itself


class Made(type):
    """The type of task classes: every task remembers which attributes it was made with."""

    @property
    def __signature__(cls) -> inspect.Signature:
        """That of `__init__`, for `help` and editors, which would show the one of `__call__`."""
        found = inspect.signature(cls.__init__)
        return found.replace(parameters=list(found.parameters.values())[1:])

    def __call__(cls, *args, **kwargs):
        made = super().__call__(*args, **kwargs)
        made._made = dict(vars(made))
        return made


class Task(metaclass=Made):
    """A task class: `prepare` it with a prompter, ask for samples by index, score outputs."""

    name: str = ""
    kind: str = "generate"  # what is done with its samples: `KINDS` of evaluation/kinds.py
    protocols: tuple[str, ...] = ("generate",)  # what methods must support: also continuation, streaming, blockwise
    has_question: bool = True  # whether context and question can be told apart, which query_aware=false needs
    has_turns: bool = False  # whether samples are turns of conversations
    agnostic: str = ""  # why its prompts need query_aware=false, as the end of a sentence; empty where they do not
    reads_on: bool = False  # whether later tokens are read after a prompt with parts of it hidden, many at once
    beyond: bool = False  # whether samples may be longer than the model was made for
    shorten: str = "lower task.lengths"  # what to do about samples that are too long
    version: int = 1  # raised whenever a change of the task changes a number
    counted: tuple[str, ...] = ()  # settings that only say how many samples there are, and change none of them
    primary: str = "accuracy"  # the label of the score
    every: int = 1  # of kind `streaming`: tokens between two evictions
    uses_methods: bool = False  # of kind `observe`: whether eviction methods are looked at too
    observer: str | None = None  # of kind `observe`: the module with `observe`

    @property
    def thinking(self) -> str | None:
        """What became of the model's thoughts in this task's prompts (see `pvcbench.tasks.chat`), for its rows."""
        return getattr(getattr(self, "prompter", None), "thinking", None) if self.kind == "generate" else None

    def prepare(self, prompter) -> None:
        """Receives the prompter of the model, which counts tokens as the model will see them."""
        self.prompter = prompter

    def validate(self) -> None:
        """Checks, before a model is loaded, everything of the task's settings and data that needs no model."""

    def check_device(self, device: str) -> None:
        """Refuses, before anything is loaded, what this task cannot do on a device."""

    def size(self, seed: int) -> int:
        """How many samples there are."""
        raise TypeError(f"{type(self).__name__} does not say how many samples it has")

    def sample(self, seed: int, index: int) -> Sample:
        """The sample with this index: a pure function of its arguments."""
        raise TypeError(f"{type(self).__name__} has no samples")

    def encode(self, sample: Sample):
        """The sample as tokens, a `pvcbench.tasks.prompts.Prompt`: by default in the prompter's chat template."""
        return self.prompter.encode(sample)

    def settings(self) -> dict:
        """What of the task's settings changes a number, for the run id: the public attributes it was made with.

        Their values are those of now. What was empty then and is no argument is a store for data, and no setting;
        neither are data that were loaded later, nor values that a property keeps.
        """
        made = getattr(self, "_made", vars(self))
        arguments = inspect.signature(type(self).__init__).parameters
        empty = {name for name, value in made.items() if name not in arguments and _is_empty(value)}
        own = {name for name in vars(self) if hasattr(type(self), name) and not _is_computed(type(self), name)}
        return {
            name: value
            for name, value in vars(self).items()
            if not name.startswith("_") and name != "prompter" and name in (made.keys() - empty) | own
        }

    def protocol_record(self) -> dict:
        """What rows say of the task's own protocol, beside query awareness and decode policy."""
        return {}

    def measured(self, sample: Sample, found) -> dict:
        """What a row says of one sample where nothing is generated: score, metrics and the task's own keys.

        `found` are the log-likelihoods of the tokens (kinds `continuation`, `streaming`) or responses (`lm_eval`).
        """
        raise TypeError(f"{type(self).__name__} does not say what it measures")

    def score(self, sample: Sample, output: str) -> dict[str, float]:
        """All metrics of an output by name; the first is the score of the row."""
        raise TypeError(f"{type(self).__name__} has no score")

    def finish(self, rows, folder) -> None:
        """Called with all rows of a run and its folder once they are measured, for what a task adds to them."""

    def data_checksum(self) -> str:
        """A hash of the data that samples are made of, for the run id."""
        return ""


def sample_of(task: Task, seed: int, index: int) -> Sample:
    """A task's sample; whatever goes wrong in a task says whose task it is, at which sample and where."""
    who = f"task {task.name!r} ({type(task).__module__}.{type(task).__qualname__})"
    try:
        sample = task.sample(seed, index)
    except UserError:
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise TaskError(f"{who} fails at sample {index}: {reason} ({place.filename}, line {place.lineno})") from error
    if not isinstance(sample, Sample):
        raise TaskError(f"{who} gives {type(sample).__name__} for sample {index}: give a pvcbench.Sample")
    wrong = wrong_turn(sample, task.has_turns)
    if wrong is not None:
        raise TaskError(f"{who} gives sample {sample.id}, {wrong}")
    return sample


def wrong_turn(sample: Sample, has_turns: bool) -> str | None:
    """What is wrong with a sample as a turn of a conversation; None where nothing is."""
    if bool(sample.turns) != has_turns:
        told = "without turns: a task with has_turns" if has_turns else "with turns: a task without has_turns"
        return f"{told} gives either all samples turns or none"
    if not sample.turns:
        return None
    if not 1 <= sample.turn <= len(sample.turns) or sample.turns[sample.turn - 1].question != sample.question:
        return "whose question is not that of its turn: turn counts from 1"
    return None if sample.context_id else "which names no conversation: all turns of one have the same context_id"


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, list | tuple | dict | set) and not value)


def _is_computed(kind: type, name: str) -> bool:
    """Whether an attribute of a class computes its value."""
    return hasattr(inspect.getattr_static(kind, name), "__get__")


def sample_rng(seed: int, index: int) -> np.random.Generator:
    """A generator of its own for each (seed, index); seeds 1 and 2 share no samples, as they would by addition."""
    return np.random.default_rng(np.random.SeedSequence([seed, index]))


def choice(name: str, value: str, known: tuple[str, ...]) -> str:
    """The value if it is one of the known ones, or a user's error that lists them."""
    if not isinstance(value, str) or value not in known:
        raise UserError(f"{name} must be one of {', '.join(known)}, not {value!r}")
    return value


def listed(name: str, value: object) -> list:
    """The elements of a list that is not empty; a single value stands for a list of one."""
    values = list(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping) else [value]
    if not values:
        raise UserError(f"{name} must name something: it is an empty list")
    return values


def whole(name: str, value: object, least: int = 1) -> int:
    """A whole number of at least this much."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise UserError(f"{name} must be a whole number, {least} or more, not {value!r}")
    return int(value)


def wholes(name: str, value: object, least: int = 1) -> list[int]:
    """Whole numbers: a list, or one of them alone."""
    return [whole(name, one, least) for one in listed(name, value)]


def number(name: str, value: object, least: float, most: float) -> float:
    """A number within these bounds."""
    real = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not real or not least <= value <= most:
        raise UserError(f"{name} must be a number from {least:g} to {most:g}, not {value!r}")
    return float(value)


def words(name: str, value: object) -> list[str]:
    """Texts that are not empty: a list, or one of them alone, which is never taken apart into letters."""
    values = [] if isinstance(value, list | tuple) and not value else listed(name, value)
    for one in values:
        if not isinstance(one, str) or not one:
            raise UserError(f"{name} must be a list of texts such as ['a','b'], not {value!r}")
    return values


def flag(name: str, value: object) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise UserError(f"{name} must be true or false, not {value!r}")
    return value
