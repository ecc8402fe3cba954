"""Configuration: finds `conf`, composes it, and builds models, tasks and methods from it by `_target_`."""

import difflib
import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pvcbench.errors import UserError
from pvcbench.extras import pip_install

PACKAGE = Path(__file__).parent
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"
LAUNCHERS = ("basic", "submitit_local", "submitit_slurm")


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
    results: str = "results"
    experiment: str = "default"
    limit: int | None = None
    shard: str | None = None  # 2/4: the samples whose index % 4 is 1, in a row file of their own
    retry_failed: bool = False
    device: str = "auto"
    threads: int | None = None
    dtype: str | None = None
    batch: int = 1
    wandb: Wandb = field(default_factory=Wandb)
    engine: EngineSettings = field(default_factory=EngineSettings)


ConfigStore.instance().store("schema", Config)


def load_methods_package() -> None:
    """Makes `methods` mean ours, by its place beside this package, whatever folder the user runs in."""
    folder = PACKAGE.parent / "methods"
    known = sys.modules.get("methods")
    if known is not None and Path(getattr(known, "__file__", None) or "").parent == folder:
        return
    for name in [name for name in sys.modules if name == "methods" or name.startswith("methods.")]:
        del sys.modules[name]
    spec = importlib.util.spec_from_file_location(
        "methods", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or not (folder / "__init__.py").is_file():
        raise UserError(f"the methods package is missing beside {PACKAGE}: install pvcbench again")
    module = importlib.util.module_from_spec(spec)
    sys.modules["methods"] = module
    spec.loader.exec_module(module)


def composed(overrides: Sequence[str], extra: Sequence[str] = ()) -> DictConfig:
    """The configuration for some overrides; every mistake becomes one line that says what to do."""
    paths = [f"hydra.searchpath=[{','.join(f'file://{Path(path).resolve()}' for path in extra)}]"] if extra else []
    for path in extra:
        if not Path(path).is_dir():
            raise UserError(f"--config-dir: there is no folder {path}")
    rest, names = split_names(overrides)
    try:
        with initialize_config_dir(str(CONF), version_base="1.3", job_name="pvcbench"):
            config = compose("config", overrides=[*rest, *paths])
        name_run(config, names)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from error
    allowed = list(Config.__dataclass_fields__)
    for key in config:
        if key not in allowed:
            raise UserError(unknown("key", str(key), allowed))
    return config


def split_names(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides for Hydra, and those of the form experiment=NAME, which name the results folder.

    Hydra would read these as a choice from the group of experiments, which is +experiment=NAME.
    """
    names = [one for one in overrides if re.match(r"(\+\+)?experiment=", one)]
    return [one for one in overrides if one not in names], names


def name_run(config: DictConfig, names: Sequence[str]) -> None:
    """Sets the name of the results folder to the last one given."""
    for name in OverridesParser.create().parse_overrides(list(names)):
        if name.is_sweep_override():
            raise UserError(f"{name.input_line}: experiment names one folder; +experiment=NAME,NAME runs several")
        config.experiment = name.value()


def written(value: Any) -> str:
    """A Python value in Hydra's override grammar; strings are quoted."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, str | os.PathLike):
        escaped = os.fspath(value).replace("\\", "\\\\").replace("'", "\\'")
        return f"'{escaped}'"
    if isinstance(value, list | tuple):
        return f"[{','.join(written(item) for item in value)}]"
    return repr(value)


def explain(error: Exception) -> str:
    """One line for what Hydra says in many, with the nearest names that exist."""
    text = str(error)
    missing = re.search(r"Could not find '(?:([\w/]+)/)?([\w.\-]+)'", text)
    if missing and missing[1]:
        if missing[1] == "hydra/launcher" and missing[2] in LAUNCHERS:
            return f"hydra/launcher={missing[2]} needs submitit and its Hydra launcher: {pip_install('slurm')}"
        return unknown(missing[1], missing[2], LAUNCHERS if missing[1] == "hydra/launcher" else options(missing[1]))
    if "Could not override" in text or "is not in struct" in text or "not in 'Config'" in text:
        key = re.search(r"override '([^']+)'|Key '([^']+)'", text)
        name = next((part for part in key.groups() if part), "?") if key else "?"
        full = re.search(r"full_key: (\S+)", text)
        return unknown("key", full[1] if full else name, known_keys())
    cause = error.__cause__ or error
    return " ".join(f"{text.splitlines()[0]}: {cause}".split()) if cause is not error else " ".join(text.split())


def unknown(kind: str, name: str, known: Sequence[str]) -> str:
    """`unknown KIND 'NAME'` with the closest known name, or all of them."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"unknown {kind} {name!r}: " + (
        f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(known)}"
    )


def options(group: str) -> list[str]:
    """The names in a configuration group."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def known_keys() -> list[str]:
    """Every dotted key of the default configuration with all methods."""
    found: list[str] = []

    def walk(node, prefix):
        for key, value in node.items():
            found.append(f"{prefix}{key}")
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")

    names = ",".join(options("method"))
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="pvcbench"):
        walk(OmegaConf.to_container(compose("config", overrides=[f"method=[{names}]"])), "")
    return found


def build(node: Any, name: str, **runtime) -> Any:
    """The object a configuration node describes by `_target_`; a wrong argument becomes a user's error."""
    try:
        return instantiate(node, _convert_="all", **runtime)
    except (HydraException, TypeError) as error:
        cause = error.__cause__ or error
        if isinstance(cause, UserError):
            raise cause from error
        raise UserError(f"cannot build {name}: {' '.join(str(cause).split())}") from error


def build_methods(nodes: Any) -> dict[str, Any]:
    """The methods of a run by name."""
    load_methods_package()
    return {name: build(node, f"method {name}") for name, node in nodes.items()}


def device_of(name: str) -> str:
    """The device a run uses: the first GPU if there is one and `auto` was asked."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return name


def threads_of(asked: int | None) -> int:
    """Threads for the model: what was asked, or all cores this process may run on."""
    if asked is not None and asked < 1:
        raise UserError(f"threads must be 1 or more, not {asked}")
    own = os.sched_getaffinity(0) if sys.platform == "linux" else range(os.cpu_count() or 1)
    return asked or len(own)
