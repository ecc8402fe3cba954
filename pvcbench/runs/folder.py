"""Results on disk: `<results>/<experiment>/<run id>/{config.yaml, environment.json, rows.jsonl, figures/}`.

A row is one sample in one cell. Rows are appended and flushed per sample, so a kill costs at most one sample; what is
torn is dropped on resume, what is finished is never overwritten. Shards of a run (`shard=2/4`) have row files of their
own in the same folder, `rows-2of4.jsonl`, and are read as one. `load_table` (runs/rows.py) gives all rows as one table.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TextIO

import yaml

from pvcbench.config.shards import Shard
from pvcbench.errors import UserError
from pvcbench.places import user_path
from pvcbench.runs import locks, packed, sessions, stored
from pvcbench.runs.rows import in_sample_order, key_of, row_files, rows_by_file
from pvcbench.runs.run_id import run_id
from pvcbench.runs.sessions import refuse_other_weights
from pvcbench.runs.writing import _append, _first, _untear, _written


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
        self.environment: dict = {}
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
                if path == packed.plain(path):
                    _untear(path)
            found = rows_by_file(self.path, self.identity)
            self._homes = {key_of(row): packed.plain(path) for path, rows in found.items() for row in rows}
            self.environment = dict(environment)
            self._describe(config)
        except BaseException:
            self.close()
            raise
        return in_sample_order(found)

    def _describe(self, config: Mapping) -> None:
        """Writes environment.json and config.yaml where they are missing, and config.yaml also where it is torn.

        Raises UserError where config.yaml is another run's.
        """
        if not (self.path / "environment.json").exists():
            _first(self.path / "environment.json", json.dumps(self.environment, indent=1) + "\n")
        refuse_other_weights(self.path, self.environment)
        path = self.path / "config.yaml"
        known = stored.read(path)
        if known is not None:
            stored.refuse_altered(path, known, self.id)
            return
        if path.exists():
            print(f"pvcbench: {path} was empty or torn: it is written again", file=sys.stderr)
        whole = {"run": self.id, "identity": self.identity, "config": dict(config)}
        _first(path, yaml.safe_dump(whole, sort_keys=False, allow_unicode=True))  # last: then both stand

    def writes(self, row: Mapping) -> bool:
        """Whether this writer may add a row for this row's sample and cell: a shard only where its own file has it."""
        return self.shard is None or self._homes.get(key_of(row), self.rows_path) == self.rows_path

    def home(self, row: Mapping) -> Path | None:
        """The file where this row's sample and cell stood when the folder was opened."""
        return self._homes.get(key_of(row))

    def append(self, rows: Iterable[Mapping]) -> None:
        """Adds rows and makes sure that they are on disk; a retry's row goes where the row it replaces stands."""
        texts: dict[Path, list[str]] = {}
        for row in rows:
            path = self._homes.get(key_of(row), self.rows_path) if self.shard is None else self.rows_path
            texts.setdefault(path, []).append(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
        for path, lines in texts.items():
            with _written(path):
                self._unpack(path)
                if path not in self._noted:
                    sessions.add(path, self.environment)
                    self._noted.add(path)
                _append(path, "".join(lines))

    def _unpack(self, path: Path) -> None:
        """Unpacks the file that rows are added to, where it lies packed."""
        packed_file = path.with_name(path.name + packed.SUFFIX)
        if packed_file.exists() and not path.exists():
            _untear(packed.unpacked(packed_file))

    def close(self) -> None:
        """Releases the locks."""
        while self._locks:
            self._locks.pop().close()
