"""What a run can be told: every key of the configuration, its kind and its range; checked before torch is imported."""

import os
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import MISSING, DictConfig, OmegaConf

from pvcbench.config.budgets import parse_budgets
from pvcbench.config.shards import Shard
from pvcbench.errors import UserError
from pvcbench.places import user_path


@dataclass
class Wandb:
    mode: str = "offline"  # offline | online | disabled
    project: str = "pvcbench"
    entity: str | None = None
    group: str | None = None  # None: the experiment's name


@dataclass
class EngineSettings:
    backend: str = "blocked"  # of attention_mass: blocked | reference | triton (on a GPU)
    chunk: int | None = None  # tokens per prefill call; None: the whole prompt


@dataclass
class SamplingSettings:
    temperature: float | None = None  # None: answers are greedy; 0.6: they are drawn
    top_p: float = 1.0  # the likeliest tokens with this probability together are left, after top_k
    top_k: int | None = None  # so many of the likeliest tokens are left; None: all
    n: int = 1  # answers to each sample: a row each, which count as one cluster


@dataclass
class RepeatSettings:
    ngram: int | None = None  # an answer ends where its last tokens, so many, repeat; None: never, 10 is usual
    times: int = 5  # how often they stand in the answer then


@dataclass
class Config:
    """Everything a run can be told; a key that is not here is a typo."""

    model: Any = MISSING
    task: Any = MISSING
    methods: dict[str, Any] = field(default_factory=dict)
    budgets: list[Any] = MISSING
    seed: int = 0
    query_aware: bool = True
    refeed_last: bool = False
    decode: str = "grow"
    interval: int = 1
    prompt: str = "counted"
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    stop_repeats: RepeatSettings = field(default_factory=RepeatSettings)
    history: str = "golden"
    recompress: bool = False
    results: str = "results"
    experiment: str = "default"
    limit: int | None = None
    shard: str | None = None  # 2/4: the samples whose index % 4 is 1, in a row file of their own
    retry_failed: bool = False
    reuse: bool = True
    figures: bool = True
    device: str = "auto"
    threads: int | None = None
    dtype: str | None = None
    batch: int = 1
    wandb: Wandb = field(default_factory=Wandb)
    engine: EngineSettings = field(default_factory=EngineSettings)


PARTS = {"sampling": SamplingSettings, "stop_repeats": RepeatSettings, "wandb": Wandb, "engine": EngineSettings}
CHOICES = {
    "decode": ("grow", "hold"),
    "prompt": ("counted", "protected"),
    "history": ("golden", "model"),
    "dtype": ("auto", "float32", "bfloat16", "float16", "float64"),
    "engine.backend": ("blocked", "reference", "triton"),
    "wandb.mode": ("offline", "online", "disabled"),
}
LEAST = {"seed": 0, "interval": 1, "limit": 1, "batch": 1, "threads": 1, "engine.chunk": 1}
LEAST |= {"sampling.top_k": 1, "sampling.n": 1, "stop_repeats.ngram": 1, "stop_repeats.times": 2}
MOST = 2**63 - 1  # of a whole number that torch and tables hold
WORDS = {int: "a whole number", bool: "true or false", str: "text", float: "a number", dict: "a mapping"}
GROUPS = {"model": "model=NAME", "task": "task=NAME", "methods": "'method=[NAME,NAME]'"}  # what is chosen by name


def kinds(schema: type = Config, prefix: str = "") -> dict[str, tuple[type, bool]]:
    """The type of every dotted key of the schema and whether it may be null; not of what is chosen by name."""
    found = {}
    hints = get_type_hints(schema)
    for one in fields(schema):
        hint, key = hints[one.name], f"{prefix}{one.name}"
        if is_dataclass(hint):
            found[key] = dict, False
            found |= kinds(hint, f"{key}.")
        elif key not in GROUPS:
            empty = type(None) in get_args(hint)
            kind = get_args(hint)[0] if empty else hint
            found[key] = get_origin(kind) or kind, empty
    return found


def wanted(key: str) -> str:
    """What a key of the schema takes, in words."""
    kind, empty = kinds()[key]
    if key in CHOICES:
        words = " or ".join((", ".join(CHOICES[key][:-1]), CHOICES[key][-1]))
    elif key == "budgets":
        words = "a list such as [64,0.25,0.5]"
    elif key in LEAST:
        words = f"a whole number of {LEAST[key]} or more"
    else:
        words = WORDS[kind]
    return f"{words}, or null" if empty else words


def check(config: DictConfig) -> None:
    """Refuses, in one line, every setting that can be refused without the model, the task's data and torch."""
    for one in fields(Config):
        if one.name not in config:
            raise UserError(f"every run needs {one.name}: leave ~{one.name} out")
        if OmegaConf.is_missing(config, one.name):
            raise UserError(f"{one.name} is missing: set {GROUPS.get(one.name, one.name + '=...')}")
    _check_chosen(config)
    parse_budgets(OmegaConf.to_container(config.budgets))
    for key, known in CHOICES.items():
        value = OmegaConf.select(config, key)
        if value not in known and not (value is None and kinds()[key][1]):
            raise UserError(f"{key} must be {wanted(key)}, not {value!r}")
    for key, least in LEAST.items():
        value = OmegaConf.select(config, key)
        if value is not None and not least <= value <= MOST:
            more = f"{least} or more" if value < least else f"{MOST} or less"
            raise UserError(f"{key} must be {more}, not {value}")
    for key, usual in {"interval": 1, "prompt": "counted"}.items():
        if config[key] != usual and config.decode != "hold":
            raise UserError(f"{key}={config[key]} says how decode=hold evicts: set decode=hold, or leave {key}={usual}")
    _check_sampling(config.sampling)
    Shard.parse(config.shard)
    if not config.device:
        raise UserError("device must be auto, cpu, cuda or another of torch's names, not empty")
    _check_places(str(config.results), str(config.experiment))


def _check_sampling(sampling: DictConfig) -> None:
    """Refuses what no answer can be drawn by, and settings of drawn answers where they are greedy."""
    heat = sampling.temperature
    if heat is None:
        given = [name for name, value in vars(SamplingSettings()).items() if sampling[name] != value]
        if given:
            raise UserError(
                f"sampling.{given[0]}={sampling[given[0]]} is of drawn answers: set sampling.temperature, such as 0.6"
            )
        return
    if not 0.01 <= heat <= 100:
        raise UserError(f"sampling.temperature must be a number from 0.01 to 100, or null (greedy), not {heat}")
    if not 0 < sampling.top_p <= 1:
        raise UserError(f"sampling.top_p must be a number above 0, up to 1 (all tokens), not {sampling.top_p}")


def _check_chosen(config: DictConfig) -> None:
    """Refuses a model, task or method that is not described by a mapping with `_target_`."""
    nodes = {"model": config.model, "task": config.task}
    for key in nodes | {f"methods.{name}": node for name, node in config.methods.items()}:
        node = OmegaConf.select(config, key)
        if not isinstance(node, DictConfig) or "_target_" not in node:
            shown = OmegaConf.to_container(node) if OmegaConf.is_config(node) else node
            advice = f"set {GROUPS[key]}" if key in GROUPS else f"set {GROUPS['methods']}, or ~{key} to leave it out"
            raise UserError(f"{key} must be a mapping with a class under _target_, not {shown!r}: {advice}")


def _check_places(results: str, experiment: str) -> None:
    """Refuses a results folder that cannot be written and an experiment that is not the name of one folder."""
    if not results.strip():
        raise UserError("results must name a folder, not be empty: set results=FOLDER")
    if not experiment.strip() or experiment in (".", "..") or "/" in experiment or "\0" in experiment + results:
        raise UserError(
            f"experiment must be the name of one folder, not {experiment!r}: the place of all of them is results=FOLDER"
        )
    if "," in experiment:
        raise UserError(f"experiment names one folder, not {experiment!r}; +experiment=NAME,NAME runs several")
    folder = user_path(results) / experiment
    there = next(path for path in (folder, *folder.parents) if _exists(path))
    if not there.is_dir():
        raise UserError(f"cannot write results to {folder}: {there} is not a folder; set results=FOLDER")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"cannot write results to {folder}: {there} may not be written; set results=FOLDER")


def _exists(path: Path) -> bool:
    """Whether something is there; a name that no file can have is not."""
    try:
        return path.exists()
    except OSError:
        return False
