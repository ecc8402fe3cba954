"""The rows of runs as they lie in their folders: read, joined over shards, and as one table."""

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pvcbench.errors import UserError
from pvcbench.places import user_path
from pvcbench.runs.stored import stored
from pvcbench.stats.failures import typed

KEY = ("sample", "method", "budget")


ROWS = re.compile(r"rows(?:-(\d+)of(\d+))?\.jsonl")
Key = tuple[str, str | None, str | None]  # sample, method and budget


def key_of(row: Mapping) -> tuple:
    """What a row answers: its sample, method and budget."""
    return tuple(row[name] for name in KEY)


def row_files(folder: Path) -> list[Path]:
    """The row files of one run: rows.jsonl first, then its shards in order."""
    names = {path: ROWS.fullmatch(path.name) for path in folder.glob("rows*.jsonl")}
    places = {path: tuple(int(part or 0) for part in match.group(2, 1)) for path, match in names.items() if match}
    return sorted(places, key=places.__getitem__)


def read_rows(path: Path) -> list[dict]:
    """The rows of a file, or of all row files of a run's folder; an unreadable line is an error that names it."""
    if path.is_dir():
        return in_sample_order(rows_by_file(path))
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


def rows_by_file(folder: Path) -> dict[Path, list[dict]]:
    """The newest rows of each row file of a run; raises where two files have the same sample and cell."""
    found, homes = {}, {}
    for path in row_files(folder):
        found[path] = newest(read_rows(path))
        for row in found[path]:
            sample, method, budget = key = key_of(row)
            if homes.setdefault(key, path) != path:
                raise UserError(
                    f"{homes[key]} and {path} both have a row of sample {sample}, {method} at {budget}: "
                    "delete that line in one of them"
                )
    return found


def in_sample_order(found: Mapping[Path, Sequence[Mapping]]) -> list[dict]:
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


def shown_rows(folder: Path) -> Path:
    """What to call a run's row files in a message."""
    sharded = any(path.name != "rows.jsonl" for path in row_files(folder))
    return folder / ("rows*.jsonl" if sharded else "rows.jsonl")


def newest(rows: Iterable[Mapping]) -> list[dict]:
    """One row per sample and cell: a retry's row replaces the error row it repaired."""
    known: dict[tuple, dict] = {}
    for row in rows:
        known[key_of(row)] = dict(row)
    return list(known.values())


def run_folders(results: str | Path) -> list[Path]:
    """Every run's folder below a folder."""
    found = user_path(results).rglob("rows*.jsonl")
    return sorted({path.parent for path in found if ROWS.fullmatch(path.name)})


def leaking(frame: pd.DataFrame, identity: Mapping) -> pd.Series:
    """Whether the method of each row reads what follows the prompt: by the row, or by the run where it does not say."""
    settings = {name: made.get("settings") or {} for name, made in (identity.get("methods") or {}).items()}
    reads = frame["method"].map({name: own.get("reads") for name, own in settings.items()})
    if "reads" in frame:
        reads = frame["reads"].where(frame["reads"].notna(), reads)
    return reads.notna() & reads.ne("prompt")


def load_table(results: str | Path) -> pd.DataFrame:
    """All rows of all runs below a folder as one table, with the run's id, experiment and settings as columns."""
    frames = []
    for folder in run_folders(results):
        known = stored(folder)
        identity = known["identity"]
        settings = {"run": known["run"], "model": identity["model"]["name"], "seed": identity["seed"]}
        frame = pd.DataFrame(read_rows(folder))
        if frame.empty:
            continue
        frame = frame.assign(**settings, experiment=folder.parent.name)
        frame["stratum"] = frame["stratum"].fillna("") if "stratum" in frame else ""
        frame["folder"] = str(folder)
        frame["leaks"] = leaking(frame, identity)
        frames.append(frame)
    if not frames:
        raise UserError(f"there are no results under {results}: run `python -m pvcbench` first")
    return typed(pd.concat(frames, ignore_index=True))


@dataclass(frozen=True)
class Stored:
    """A stored row and where it stands."""

    row: dict
    file: str
    line: int

    @property
    def key(self) -> Key:
        """Sample, method and budget."""
        return tuple(self.row[name] for name in KEY)


def stored_rows(folder: Path) -> dict[Key, Stored]:
    """The newest row of every sample and cell."""
    found = {}
    for path in sorted(folder.glob("rows*.jsonl")):
        for line, row in enumerate(read_rows(path)):
            one = Stored(row, path.name, line)
            found[one.key] = one
    return found
