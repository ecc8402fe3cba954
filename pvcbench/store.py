"""Results on disk: `<results>/<experiment>/<run id>/{config.yaml, environment.json, rows.jsonl, figures/}`.

A row is one sample in one cell. Rows are appended and flushed per sample, so a kill costs at most one sample; what is
torn is dropped on resume, what is finished is never overwritten. `load` gives all rows of all runs as one table.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd
import yaml

from pvcbench import sessions
from pvcbench.errors import UserError

KEY = ("sample", "method", "budget")


def run_id(identity: Mapping) -> str:
    """A hash of everything that changes a number; equal ids mean that rows may stand in one file."""
    text = json.dumps(identity, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class RunFolder:
    """One run's folder, locked while it is written."""

    def __init__(self, results: str | Path, experiment: str, identity: Mapping):
        self.identity = dict(identity)
        self.id = run_id(identity)
        self.path = Path(results).expanduser() / experiment / self.id
        self.rows_path = self.path / "rows.jsonl"
        self._lock = None
        self._environment = {}
        self._noted = False  # whether sessions.jsonl tells of this session

    def open(self, config: Mapping, environment: Mapping) -> list[dict]:
        """Creates or resumes the run and returns the rows it has; drops a last line that a kill tore."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("w", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write results to {self.path}: {error.strerror}; set results=FOLDER") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another process is writing run {self.id}: wait for it or stop it") from error
        rows = self._recover()
        self._environment = dict(environment)
        if not (self.path / "config.yaml").exists():
            stored = {"run": self.id, "identity": self.identity, "config": dict(config)}
            try:  # config.yaml last: where it stands, both do
                _write(self.path / "environment.json", json.dumps(self._environment, indent=1) + "\n")
                _write(self.path / "config.yaml", yaml.safe_dump(stored, sort_keys=False, allow_unicode=True))
            except OSError as error:
                raise self._unwritable(self.path, error) from error
        return rows

    def _recover(self) -> list[dict]:
        if not self.rows_path.exists():
            return []
        raw = self.rows_path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) < len(raw):
            with self.rows_path.open("r+b") as file:
                file.truncate(len(whole))
        return read_rows(self.rows_path)

    def append(self, rows: Iterable[Mapping]) -> None:
        """Adds rows and makes sure that they are on disk."""
        text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        size = self.rows_path.stat().st_size if self.rows_path.exists() else 0
        try:
            if not self._noted:
                sessions.add(self.rows_path, self._environment)
                self._noted = True
            with self.rows_path.open("ab") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):  # the disk is full or gone; what was measured before stays whole
                os.truncate(self.rows_path, size)
            raise self._unwritable(self.rows_path, error) from error

    @staticmethod
    def _unwritable(path: Path, error: OSError) -> RuntimeError:
        return RuntimeError(
            f"cannot write {path}: {error.strerror}; free some space and run the same command again, "
            "it continues after the last finished sample"
        )

    def close(self) -> None:
        """Releases the lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _write(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def read_rows(path: Path) -> list[dict]:
    """The rows of a file; an unreadable line is an error that names it."""
    rows = []
    lines = re.findall(r"[^\n]*\n|[^\n]+$", path.read_text(encoding="utf-8", errors="replace"))
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            _ = [row[name] for name in KEY]
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines) and not line.endswith("\n"):
                break  # being written, or torn by a kill
            raise UserError(
                f"{path}, line {number} is not a row: delete it, and the next run measures it again"
            ) from error
        rows.append(row)
    return rows


def latest(rows: Iterable[Mapping]) -> list[dict]:
    """One row per sample and cell: a retry's row replaces the error row it repaired."""
    known: dict[tuple, dict] = {}
    for row in rows:
        known[tuple(row[name] for name in KEY)] = dict(row)
    return list(known.values())


def load(results: str | Path) -> pd.DataFrame:
    """All rows of all runs below a folder as one table, with the run's id, experiment and settings as columns."""
    frames = []
    for path in sorted(Path(results).expanduser().rglob("rows.jsonl")):
        try:
            stored = yaml.safe_load((path.parent / "config.yaml").read_text(encoding="utf-8"))
            settings = {"run": stored["run"], "model": stored["identity"]["model"]["name"]}
            settings["seed"] = stored["identity"]["seed"]
        except (OSError, KeyError, TypeError, yaml.YAMLError) as error:
            raise UserError(f"{path.parent} has rows but no readable config.yaml: move it out of {results}") from error
        frame = pd.DataFrame(latest(read_rows(path)))
        if frame.empty:
            continue
        frame = frame.assign(**settings, experiment=path.parent.parent.name)
        frame["stratum"] = frame["stratum"].fillna("") if "stratum" in frame else ""
        frame["folder"] = str(path.parent)
        frames.append(frame)
    if not frames:
        raise UserError(f"there are no results under {results}: run `python -m pvcbench` first")
    return pd.concat(frames, ignore_index=True)
