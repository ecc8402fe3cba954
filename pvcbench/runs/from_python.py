"""Turns the arguments of `pvcbench.evaluate` into a configuration and objects; mistakes become one-line errors."""

import os
import sys
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import PurePath

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from pvcbench.config import building
from pvcbench.config import compose as configuration
from pvcbench.errors import UserError
from pvcbench.models.loaded import LoadedModel
from pvcbench.policy import Method
from pvcbench.runs.result import Result
from pvcbench.tasks.base import Task


def understood(model, task, methods, budgets, settings: Mapping) -> tuple[DictConfig, dict]:
    """The configuration of a call, and the objects that stand in for parts of it."""
    chosen, objects = [], {}
    for group, value, kind in (("model", model, LoadedModel), ("task", task, Task)):
        if isinstance(value, str):
            chosen.append(f"{group}={value}")
        elif isinstance(value, kind):
            objects[group] = value
        else:
            raise UserError(f"{group} must be {ADVICE[group]}, not {shown(value)}")
    if isinstance(methods, Mapping):
        objects["methods"] = methods_of(methods)
    else:
        chosen.append(f"method=[{','.join(names_of(methods))}]")
    values = dict(settings) if budgets is None else {"budgets": budgets, **settings}
    for name, value in leaves(values):
        key = name.replace("__", ".")
        if key.partition(".")[0] in objects:
            raise UserError(
                f"{name}: {key.partition('.')[0]} was given as an object, so set this on the object instead"
            )
        chosen.append(f"{key}={configuration.written(plain(value, name))}")
    return configuration.composed(chosen), objects


ADVICE = {
    "model": (
        "the name of a file in conf/model or a LoadedModel (a folder or a model of the hub is model='hf', "
        "model__name=FOLDER; for a model in memory see pvcbench.models.loaded.LoadedModel)"
    ),
    "task": "the name of a file in conf/task or a Task object (a file of your own is task='jsonl', task__path=FILE)",
}


def shown(value: object) -> str:
    """A value in a message: its text where that is short and says something, else its kind."""
    if isinstance(value, type):
        return f"the class {value.__name__} (make an object of it: {value.__name__}(...))"
    text = repr(value)
    return text if len(text) <= 60 and " at 0x" not in text else f"an object of type {type(value).__name__}"


def methods_of(methods: Mapping) -> dict[str, Method]:
    """Method objects by name, the full cache among them."""
    for name, method in methods.items():
        if not isinstance(name, str) or not isinstance(method, Method):
            raise UserError(f"methods must map names to Method objects; {name!r} is {shown(method)}")
    found = dict(methods)
    if not any(method.reference for method in found.values()):
        found |= building.build_methods(configuration.composed(["method=full"]).methods)
    return found


def names_of(methods: object) -> list[str]:
    """Names of methods, given as one, or as any collection."""
    if isinstance(methods, str):
        return [methods]
    if isinstance(methods, Method | type) or not hasattr(methods, "__iter__"):
        raise UserError(f"methods must be names or a dictionary of names to Method objects, not {shown(methods)}")
    names = list(methods)
    for name in names:
        if not isinstance(name, str):
            raise UserError(f"methods holds {shown(name)}: give objects as a dictionary, methods={{'mine': ...}}")
    if not names:
        raise UserError("methods is empty: name at least one, for instance methods=['pvc']")
    return [str(name) for name in names]


def leaves(values: Mapping, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Names and values that are no dictionaries; inner names follow after two underscores."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{name}__")
        else:
            yield f"{prefix}{name}", value


def plain(value: object, name: str) -> object:
    """A setting in the types of a configuration: arrays and scalars of NumPy and torch, paths, devices and the like."""
    if isinstance(value, np.generic | np.ndarray | torch.Tensor):
        value = value.tolist()
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, DictConfig) or OmegaConf.is_list(value):
        value = OmegaConf.to_container(value)
    if isinstance(value, torch.device | torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, PurePath):
        return os.fspath(value)
    if isinstance(value, list | tuple | range):
        return [plain(one, name) for one in value]
    if isinstance(value, str):
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    raise UserError(f"{name}: {shown(value)} cannot be a setting: give numbers, texts, true or false, or lists of them")


def tell(result: Result) -> None:
    """Says on stderr where nothing was measured, which a table alone does not show."""
    if not result.measured:
        print(
            f"pvcbench: this run was finished before; nothing was measured again, the table is of {result.folder}",
            file=sys.stderr,
        )
