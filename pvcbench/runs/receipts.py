"""Receipts: what a finished command line depended on, so that the same one is answered again before torch is imported.

A receipt lies in `<results>/.finished`, under the hash of everything that the command line says and that this machine
and its packages are; it names the run, and every file that the run's id was made of with its mark. Where anything is
not as it was, there is no receipt, and the run is looked up in the usual way. Receipts may be deleted at any time.
"""

import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from pvcbench.config import building, processors
from pvcbench.places import marks, of_library, user_path
from pvcbench.runs import environment
from pvcbench.runs.rows import row_files
from pvcbench.runs.writing import write_whole
from pvcbench.tasks.base import Task

FOLDER = ".finished"
VARIABLES = ("HF_", "HOME", "NLTK_DATA", "PVCBENCH_", "PYTHON", "TRANSFORMERS_", "XDG_")  # where files are looked for


@dataclass(frozen=True)
class Receipt:
    """A finished run: its folder, its task, and the samples that the command line asks for."""

    folder: Path
    task: Task
    asked: list[str]


def key(config: Mapping) -> str:
    """The hash of what a command line says and of where it is said: settings, machine, places, versions, our code."""
    known = {
        "config": config,
        "places": [os.getcwd(), *sys.path],
        "python": platform.python_version(),
        "packages": {name: environment.version(name) for name in environment.PACKAGES},
        "code": environment.source(),
        "machine": [platform.node(), environment.processor(), processors.threads_of(None)],
        "gpus": sorted(path.name for path in Path("/dev").glob("nvidia[0-9]*")),
        "variables": {
            name: value
            for name, value in sorted(os.environ.items())
            if name in environment.VARIABLES or name.startswith(VARIABLES)
        },
    }
    return hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()


def keep(config: Mapping, folder: Path, task: Task, asked: Iterable[str], files: Mapping[str, list] | None) -> None:
    """Writes the receipt of a run that is finished.

    None where its files are not known, and for tasks that end a run in a way of their own.
    """
    if files is None or type(task).finish is not Task.finish:
        return
    text = json.dumps(
        {
            "run": folder.name,
            "asked": list(asked),
            "task": _of_task(task),
            "modules": _modules(),
            "files": {**files, **marks(_kept(folder))},
        },
        default=str,
    )
    place = user_path(config["results"]) / FOLDER
    place.mkdir(exist_ok=True)
    write_whole(place / f"{key(config)}.json", text)


def find(config: DictConfig) -> Receipt | None:
    """The receipt of a command line, where all that its run was made of is as it was."""
    if config.retry_failed or config.shard is not None:
        return None
    try:
        text = (user_path(config.results) / FOLDER / f"{key(OmegaConf.to_container(config))}.json").read_text(
            encoding="utf-8"
        )
        known = json.loads(text)
        folder = user_path(config.results) / config.experiment / known["run"]
        if any(marks([Path(path)])[path] != mark for path, mark in known["files"].items()):
            return None
        if _kept(folder) - {Path(path) for path in known["files"]} or _modules(known["modules"]) != known["modules"]:
            return None
        task = building.build(config.task, "the task")
        task.validate()
        same = json.loads(json.dumps(_of_task(task), default=str)) == known["task"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Receipt(folder, task, known["asked"]) if same else None


def _kept(folder: Path) -> set[Path]:
    """The files of a run's folder that say what was measured."""
    return {*row_files(folder.resolve()), folder.resolve() / "config.yaml"}


def _of_task(task: Task) -> list:
    """A task as far as its settings and data tell; its code is among the files."""
    return [type(task).__module__, type(task).__qualname__, task.version, task.data_checksum(), task.settings()]


def _modules(names: Iterable[str] | None = None) -> dict[str, str]:
    """Where packages that are neither installed nor Python's own are found: those named, or all that are loaded.

    Ours are found by the place of this file.
    """
    if names is None:
        names = {name.partition(".")[0] for name, one in list(sys.modules.items()) if _outside(one)}
    found = {}
    for name in sorted(set(names) - {"__main__", "__mp_main__", "methods", "pvcbench"}):
        spec = PathFinder.find_spec(name)
        found[name] = "" if spec is None or not spec.has_location else str(Path(spec.origin).resolve())
    return found


def _outside(module: object) -> bool:
    """Whether a loaded module has a file that is neither an installed package's nor Python's own."""
    file = getattr(module, "__file__", None)
    return bool(file) and not of_library(Path(file).resolve())
