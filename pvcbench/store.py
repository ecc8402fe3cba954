"""Results on disk: `<results>/<experiment>/<run id>/{config.yaml, environment.json, rows.jsonl, figures/}`.

A row is one sample in one cell. Rows are appended and flushed per sample, so a kill costs at most one sample; what is
torn is dropped on resume, what is finished is never overwritten. `load` gives all rows of all runs as one table. Shards
of a run (`shard=2/4`) have row files of their own in the same folder, `rows-2of4.jsonl`, and are read as one.
"""

import contextlib
import hashlib
import itertools
import json
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

import pandas as pd
import yaml

from pvcbench import locks, sessions
from pvcbench.errors import UserError
from pvcbench.places import user_path
from pvcbench.shards import Shard

KEY = ("sample", "method", "budget")
ROWS = re.compile(r"rows(?:-(\d+)of(\d+))?\.jsonl")


def key_of(row: Mapping) -> tuple:
    """What a row answers: its sample, method and budget."""
    return tuple(row[name] for name in KEY)


def essence(identity: Mapping) -> Mapping:
    """An identity without the model's name: a path and another path to the same weights are one model.

    Identities of before `rules` were hashed whole.
    """
    if "rules" not in identity:
        return identity
    return {**identity, "model": {key: value for key, value in identity["model"].items() if key != "name"}}


def run_id(identity: Mapping) -> str:
    """A hash of everything that changes a number; equal ids mean that rows may stand in one file."""
    text = json.dumps(essence(identity), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class RunFolder:
    """One run's folder, locked while it is written: by one writer of rows.jsonl, or by one writer for each shard."""

    def __init__(self, results: str | Path, experiment: str, identity: Mapping, shard: Shard | None = None):
        self.identity = dict(identity)
        self.id = run_id(identity)
        self.shard = shard
        self.path = user_path(results) / experiment / self.id
        self.rows_path = self.path / ("rows.jsonl" if shard is None else f"rows-{shard.label}.jsonl")
        self._locks: list[TextIO] = []
        self._homes: dict[tuple, Path] = {}
        self._environment: dict = {}
        self._noted: set[Path] = set()  # row files whose lines of sessions.jsonl tell of this session

    def open(self, config: Mapping, environment: Mapping) -> list[dict]:
        """Creates or resumes the run and returns the rows it has; drops a last line that a kill tore."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._locks = locks.take(self.path, self.shard)
        except OSError as error:
            raise UserError(f"cannot write results to {self.path}: {error.strerror}; set results=FOLDER") from error
        try:
            for path in row_files(self.path) if self.shard is None else [self.rows_path]:
                _untear(path)
            found = parts(self.path)
            self._homes = {key_of(row): path for path, rows in found.items() for row in rows}
            self._environment = dict(environment)
            stored = {"run": self.id, "identity": self.identity, "config": dict(config)}
            texts = {"environment.json": json.dumps(self._environment, indent=1) + "\n"}
            texts["config.yaml"] = yaml.safe_dump(stored, sort_keys=False, allow_unicode=True)  # last: then both stand
            for name, text in texts.items():
                if not (self.path / name).exists():
                    _first(self.path / name, text)
        except BaseException:
            self.close()
            raise
        return joined(found)

    def writes(self, row: Mapping) -> bool:
        """Whether this writer may add a row for this row's sample and cell: a shard only where its own file has it."""
        return self.shard is None or self._homes.get(key_of(row), self.rows_path) == self.rows_path

    def append(self, rows: Iterable[Mapping]) -> None:
        """Adds rows and makes sure that they are on disk; a retry's row goes where the row it replaces stands."""
        texts: dict[Path, list[str]] = {}
        for row in rows:
            path = self._homes.get(key_of(row), self.rows_path) if self.shard is None else self.rows_path
            texts.setdefault(path, []).append(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
        for path, lines in texts.items():
            with _written(path):
                if path not in self._noted:
                    sessions.add(path, self._environment)
                    self._noted.add(path)
                _append(path, "".join(lines))

    def close(self) -> None:
        """Releases the locks."""
        while self._locks:
            self._locks.pop().close()


def _untear(path: Path) -> None:
    """Cuts off a last line without an end."""
    if not path.exists():
        return
    raw = path.read_bytes()
    whole = raw.rfind(b"\n") + 1
    if whole < len(raw):
        with path.open("r+b") as file:
            file.truncate(whole)


def _append(path: Path, text: str) -> None:
    """Adds to a file, or leaves it as it was."""
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("ab") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        with contextlib.suppress(OSError):  # the disk is full or gone; what was measured before stays whole
            os.truncate(path, size)
        raise


def _first(path: Path, text: str) -> None:
    """Writes a file that a run's folder needs before its first row."""
    with _written(path.parent):
        write_whole(path, text)


@contextlib.contextmanager
def _written(path: Path) -> Iterator[None]:
    """Says what to do where a file cannot be written."""
    try:
        yield
    except OSError as error:
        raise RuntimeError(
            f"cannot write {path}: {error.strerror}; free some space and run the same command again, "
            "it continues after the last finished sample"
        ) from error


def write_whole(path: Path, text: str) -> None:
    """Writes a file whole or not at all, whoever else writes it at the same time."""
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def row_files(folder: Path) -> list[Path]:
    """The row files of one run: rows.jsonl first, then its shards in order."""
    names = {path: ROWS.fullmatch(path.name) for path in folder.glob("rows*.jsonl")}
    places = {path: tuple(int(part or 0) for part in match.group(2, 1)) for path, match in names.items() if match}
    return sorted(places, key=places.__getitem__)


def read_rows(path: Path) -> list[dict]:
    """The rows of a file, or of all row files of a run's folder; an unreadable line is an error that names it."""
    if path.is_dir():
        return joined(parts(path))
    rows = []
    lines = re.findall(r"[^\n]*\n|[^\n]+$", path.read_text(encoding="utf-8", errors="replace"))
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            key_of(row)
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines) and not line.endswith("\n"):
                break  # being written, or torn by a kill
            raise UserError(
                f"{path}, line {number} is not a row: delete it, and the next run measures it again"
            ) from error
        rows.append(row)
    return rows


def parts(folder: Path) -> dict[Path, list[dict]]:
    """The newest rows of each row file of a run; raises where two files have the same sample and cell."""
    found, homes = {}, {}
    for path in row_files(folder):
        found[path] = latest(read_rows(path))
        for row in found[path]:
            sample, method, budget = key = key_of(row)
            if homes.setdefault(key, path) != path:
                raise UserError(
                    f"{homes[key]} and {path} both have a row of sample {sample}, {method} at {budget}: "
                    "delete that line in one of them"
                )
    return found


def joined(found: Mapping[Path, Sequence[Mapping]]) -> list[dict]:
    """All rows of a run: those of rows.jsonl, then the shards' sample by sample in turn, as a plain run has them."""
    rows, shards = [], []
    for path, some in found.items():
        if path.name == "rows.jsonl":
            rows += some
            continue
        samples: dict[str, list[dict]] = {}
        for row in some:
            samples.setdefault(row["sample"], []).append(row)
        shards.append(samples.values())
    for turn in itertools.zip_longest(*shards, fillvalue=[]):
        rows += itertools.chain.from_iterable(turn)
    return rows


def shown(folder: Path) -> Path:
    """What to call a run's row files in a message."""
    sharded = any(path.name != "rows.jsonl" for path in row_files(folder))
    return folder / ("rows*.jsonl" if sharded else "rows.jsonl")


def latest(rows: Iterable[Mapping]) -> list[dict]:
    """One row per sample and cell: a retry's row replaces the error row it repaired."""
    known: dict[tuple, dict] = {}
    for row in rows:
        known[key_of(row)] = dict(row)
    return list(known.values())


def folders(results: str | Path) -> list[Path]:
    """Every run's folder below a folder."""
    found = user_path(results).rglob("rows*.jsonl")
    return sorted({path.parent for path in found if ROWS.fullmatch(path.name)})


def load(results: str | Path) -> pd.DataFrame:
    """All rows of all runs below a folder as one table, with the run's id, experiment and settings as columns."""
    frames = []
    for folder in folders(results):
        try:
            stored = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
            settings = {"run": stored["run"], "model": stored["identity"]["model"]["name"]}
            settings["seed"] = stored["identity"]["seed"]
        except (OSError, KeyError, TypeError, yaml.YAMLError) as error:
            raise UserError(f"{folder} has rows but no readable config.yaml: move it out of {results}") from error
        frame = pd.DataFrame(read_rows(folder))
        if frame.empty:
            continue
        frame = frame.assign(**settings, experiment=folder.parent.name)
        frame["stratum"] = frame["stratum"].fillna("") if "stratum" in frame else ""
        frame["folder"] = str(folder)
        frames.append(frame)
    if not frames:
        raise UserError(f"there are no results under {results}: run `python -m pvcbench` first")
    return pd.concat(frames, ignore_index=True)
