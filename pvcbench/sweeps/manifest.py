"""A sweep as a folder: which runs it has, one line each, and how far each of them is.

`<results>/sweeps/NAME/{manifest.jsonl, array.sh, jobs.jsonl, lines/, logs/}`. What a run asks for, its samples and
cells, is known once its model is loaded; it writes that into `lines/` before it measures anything, so that nothing else
needs the model to count.
"""

import itertools
import json
import os
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pvcbench.config.shards import Shard
from pvcbench.errors import UserError
from pvcbench.places import user_path
from pvcbench.runs.packed import plain
from pvcbench.runs.plan import Plan
from pvcbench.runs.rows import key_of, read_rows, row_files
from pvcbench.runs.writing import write_whole


@dataclass(frozen=True)
class Line:
    """One run, or a shard of one, by its settings."""

    index: int
    overrides: list[str]
    shard: str | None
    config_dirs: list[str]


@dataclass(frozen=True)
class Progress:
    """How far a line is, in cells; numbers are None before its first start."""

    state: str  # finished | running | queued | failed | stopped | not started
    cells: int | None = None
    done: int | None = None
    failed: int | None = None
    reason: str | None = None  # why the last start failed

    @property
    def missing(self) -> int | None:
        """Cells without a row."""
        return None if self.cells is None else self.cells - self.done - self.failed


def combinations(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> list[list[str]]:
    """Every combination of the values that commas separate, by Hydra's own grammar."""
    from pvcbench.config import compose as configuration
    from pvcbench.config.overrides import parsed

    choices: dict[str, list[str]] = {}
    for text in configuration.readable(overrides, configuration.folders_of(config_dirs), several=True):
        one = parsed(text)
        key = one.get_key_element()
        if not one.is_sweep_override():
            choices[key] = [text]
        elif key in ("experiment", "++experiment"):
            raise UserError(f"{text}: experiment names one folder; +experiment=NAME,NAME runs several")
        elif one.is_discrete_sweep():
            choices[key] = [f"{key}={value}" for value in one.sweep_string_iterator()]
        else:
            raise UserError(f"{text}: a sweep takes values one by one, such as seed=0,1,2")
    return [list(chosen) for chosen in itertools.product(*choices.values())]


def lines_of(overrides: Sequence[str], shards: int, config_dirs: Sequence[str]) -> list[Line]:
    """A line for every combination and shard."""
    if shards < 1:
        raise UserError(f"--shards must be 1 or more, not {shards}")
    names = [None] if shards == 1 else [f"{number}/{shards}" for number in range(1, shards + 1)]
    for text in overrides:
        if text.partition("=")[0].lstrip("+") == "shard":
            raise UserError(f"{text}: a sweep is cut into shards by --shards N")
    folders = [os.path.abspath(folder) for folder in config_dirs]
    runs = itertools.product(combinations(overrides, folders), names)
    return [Line(index, chosen, shard, folders) for index, (chosen, shard) in enumerate(runs)]


def composed(line: Line):
    """The configuration of a line; modules beside its own configuration can be imported from now on."""
    from pvcbench.config import compose as configuration

    shard = [] if line.shard is None else [f"shard='{line.shard}'"]
    return configuration.composed([*line.overrides, *shard], line.config_dirs)


def checked_results(lines: Iterable[Line]) -> Path:
    """Composes every line and builds its methods, so that a typo fails before anything runs; the results folder."""
    from pvcbench.config import building, settings

    found = set()
    for line in {tuple(line.overrides): line for line in lines}.values():  # shards differ in nothing else
        config = composed(line)
        settings.check(config)
        for name, method in building.build_methods(config.methods).items():
            method.validate(f"methods.{name}")
        found.add(str(config.results))
    if len(found) > 1:
        raise UserError(f"all runs of a sweep write to one results folder, not to {', '.join(sorted(found))}")
    return user_path(found.pop())


class Sweep:
    """The folder of a sweep."""

    def __init__(self, path: Path):
        self.path = Path(path).absolute()
        self.manifest = self.path / "manifest.jsonl"
        self.logs = self.path / "logs"
        self._rows: dict[str, dict[tuple, bool]] = {}

    @classmethod
    def named(cls, results: Path, name: str) -> "Sweep":
        """The sweep of this name below a results folder."""
        if not re.fullmatch(r"[\w.-]+", name) or name in (".", ".."):
            raise UserError(f"a sweep's name is made of letters, digits, '_', '-' and '.', not {name!r}")
        return cls(results / "sweeps" / name)

    def write(self, lines: Sequence[Line]) -> None:
        """Writes the manifest; another one under the same name is refused, the same one stays."""
        text = "".join(json.dumps(asdict(line), ensure_ascii=False) + "\n" for line in lines)
        if self.manifest.exists():
            if self.manifest.read_text(encoding="utf-8") != text:
                raise UserError(
                    f"{self.manifest} is another sweep of this name: choose another name, or the settings there"
                )
            return
        try:
            for folder in (self.path, self.path / "lines", self.logs):
                folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.manifest, text)
        except OSError as error:
            raise UserError(f"cannot write to {self.path}: {error.strerror}; set results=FOLDER") from error

    def lines(self) -> list[Line]:
        """All lines of the manifest."""
        try:
            text = self.manifest.read_text(encoding="utf-8")
            return [Line(**json.loads(line)) for line in text.splitlines()]
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"there is no sweep at {self.path}: submit it first, or name its results=FOLDER") from error

    def line(self, index: int) -> Line:
        """The line with this index."""
        lines = self.lines()
        if not 0 <= index < len(lines):
            raise UserError(f"{self.manifest} has lines 0 to {len(lines) - 1}, none with index {index}")
        return lines[index]

    def planned(self, line: Line, plan: Plan) -> None:
        """Keeps what a process that starts now will measure."""
        kept = {"folder": str(plan.folder.absolute()), "samples": plan.samples, "cells": plan.cells}
        kept |= {"host": socket.gethostname(), "process": os.getpid()}
        write_whole(self._file(line, "json"), json.dumps(kept) + "\n")

    def note(self, line: Line, reason: str | None) -> None:
        """Keeps why a run failed; None: it has not."""
        path = self._file(line, "error")
        if reason is None:
            path.unlink(missing_ok=True)
        else:
            write_whole(path, reason + "\n")

    def progress(self, line: Line, queue: Mapping[int, str] | None = None) -> Progress:
        """How far a line is; `queue` has the states that SLURM knows, by index."""
        reason = self._file(line, "error")
        reason = reason.read_text(encoding="utf-8").strip() if reason.exists() else None
        state = (queue or {}).get(line.index)
        path = self._file(line, "json")
        if not path.exists():
            return Progress(state or ("failed" if reason else "not started"), reason=reason)
        kept = json.loads(path.read_text(encoding="utf-8"))
        rows = self._rows_of(kept["folder"])
        keys = {(sample, *cell) for sample in kept["samples"] for cell in kept["cells"]}
        found = [rows[key] for key in keys if key in rows]
        whole = len(found) == len(keys) and (line.shard is not None or (Path(kept["folder"]) / "summary.csv").exists())
        if state is None and not whole and _alive(kept):
            state = "running"
        if state is None:
            state = "finished" if whole else "failed" if reason else "stopped"
        return Progress(state, len(keys), found.count(True), found.count(False), None if whole else reason)

    def written(self, line: Line) -> int:
        """Bytes of rows in the files that a line writes."""
        path = self._file(line, "json")
        if not path.exists():
            return 0
        folder, shard = Path(json.loads(path.read_text(encoding="utf-8"))["folder"]), Shard.parse(line.shard)
        own = [file for file in row_files(folder) if shard is None or plain(file).stem.endswith(f"-{shard.label}")]
        return sum(file.stat().st_size for file in own)

    def _rows_of(self, folder: str) -> dict[tuple, bool]:
        """Whether the row of each sample and cell has no error; read once for all shards of a run."""
        if folder not in self._rows:
            rows = read_rows(Path(folder)) if Path(folder).is_dir() else []
            self._rows[folder] = {key_of(row): row["error"] is None for row in rows}
        return self._rows[folder]

    def _file(self, line: Line, kind: str) -> Path:
        return self.path / "lines" / f"{line.index}.{kind}"


def _alive(kept: Mapping) -> bool:
    """Whether the process that wrote this still runs on this machine."""
    if kept["host"] != socket.gethostname():
        return False
    try:
        os.kill(kept["process"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
