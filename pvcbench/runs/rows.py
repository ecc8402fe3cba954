"""The rows of runs as they lie in their folders: read, joined over shards, and as one table."""

import itertools
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pandas as pd

from pvcbench.errors import UserError
from pvcbench.places import user_path
from pvcbench.runs.packed import content, plain
from pvcbench.runs.stored import read, stored
from pvcbench.stats.failures import typed

KEY = ("sample", "method", "budget")
NEEDED = {  # what no row can be without, and its types
    "task": str,
    "sample": str,
    "method": str | None,
    "budget": str | None,
    "reference": bool,
    "score": int | float | None,
    "metrics": Mapping,
    "error": str | None,
}

ANY = "rows*.jsonl*"  # what may be a row file
ROWS = re.compile(r"rows(?:-(\d+)of(\d+))?\.jsonl")
Key = tuple[str, str | None, str | None]  # sample, method and budget


def key_of(row: Mapping) -> tuple:
    """What a row answers: its sample, method and budget."""
    return tuple(row[name] for name in KEY)


def row_files(folder: Path) -> list[Path]:
    """The row files of one run, packed by gzip or not: rows.jsonl first, then its shards in order."""
    names = {path: ROWS.fullmatch(plain(path).name) for path in folder.glob(ANY)}
    places = {path: tuple(int(part or 0) for part in match.group(2, 1)) for path, match in names.items() if match}
    return sorted(places, key=places.__getitem__)


def read_rows(path: Path) -> list[dict]:
    """The rows of a file, or of all row files of a run's folder; an unreadable line is an error that names it."""
    if path.is_dir() and not ROWS.fullmatch(plain(path).name):
        return in_sample_order(rows_by_file(path))
    text, rows = content(path).decode("utf-8", errors="replace"), []
    lines = re.findall(r"[^\n]*\n|[^\n]+$", text)
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(row_of(line))
        except (ValueError, RecursionError) as error:
            if number == len(lines) and not line.endswith("\n"):
                break  # being written, or torn by a kill
            why = "" if isinstance(error, json.JSONDecodeError) else f" ({error})"
            raise UserError(
                f"{path}, line {number} is not a row{why}: delete it, and the next run measures it again"
            ) from error
    return rows


def row_of(line: str) -> dict:
    """The row in a line of JSON; raises ValueError where it is none."""
    row = json.loads(line, parse_constant=_no_number, parse_float=_number)
    if not isinstance(row, dict):
        raise ValueError("it is no mapping")
    lacking = [name for name in NEEDED if name not in row]
    if lacking:
        raise ValueError(f"it has no {', '.join(lacking)}")
    for name, kinds in NEEDED.items():
        if not isinstance(row[name], kinds) or (isinstance(row[name], bool) and kinds is not bool):
            raise ValueError(f"its {name} cannot be {json.dumps(row[name])}")
    return row


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number that a row may hold")


def _number(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _no_number(text)


def rows_by_file(folder: Path, identity: Mapping | None = None) -> dict[Path, list[dict]]:
    """The newest rows of each row file of a run; raises where two files have the same sample and cell, and where a row
    is of another run. `identity` is the run's, by default the one in its config.yaml."""
    found, homes = {}, {}
    if identity is None:
        known = read(folder / "config.yaml")
        identity = {} if known is None else known["identity"]
    for path in row_files(folder):
        rows = read_rows(path)
        refuse_foreign(path, rows, identity)
        found[path] = newest(rows)
        for row in found[path]:
            key = key_of(row)
            refuse_twice(homes.setdefault(key, path), path, key)
    return found


def refuse_twice(one: Path, other: Path, key: Key) -> None:
    """Refuses a sample and cell that two row files of a run have."""
    if one != other:
        sample, method, budget = key
        raise UserError(
            f"{one} and {other} both have a row of sample {sample}, {method} at {budget}: delete that line in one of "
            "them, or move the file that is not needed out of the folder"
        )


def refuse_foreign(path: Path, rows: Sequence[Mapping], identity: Mapping) -> None:
    """Refuses a row of a task, method or budget that the run of this identity does not have.

    The full cache, and a method whose size its settings fix, have one budget, which the identity does not list.
    """
    task, methods = (identity.get("task") or {}).get("name"), identity.get("methods")
    asked, labels = set(identity.get("budgets") or ()), {}
    for row in rows:
        labels.setdefault(row["method"], Counter())[row["budget"]] += 1
    alone = {row["method"] for row in rows if row["reference"]}
    fixed = {name: own.most_common(1)[0][0] for name, own in labels.items() if name in alone or not asked & own.keys()}
    for number, row in enumerate(rows, start=1):
        method, budget = row["method"], row["budget"]
        if task is not None and row["task"] != task:
            what, has = f"of task {row['task']}", task
        elif methods is not None and method is not None and method not in methods:
            what, has = f"of method {method}", ", ".join(methods) or "no method"
        elif "budgets" in identity and (budget != fixed[method] if method in fixed else budget not in asked):
            what, has = f"of {method} at budget {budget}", ", ".join(sorted(asked)) or "no budget"
        else:
            continue
        raise UserError(
            f"{path}, line {number} is a row {what}, which this run cannot have ({has}): "
            "delete the line, or put it back into the run that measured it"
        )


def in_sample_order(found: Mapping[Path, Sequence[Mapping]]) -> list[dict]:
    """All rows of a run: those of rows.jsonl, then the shards' sample by sample in turn, as a plain run has them."""
    rows, shards = [], []
    for path, some in found.items():
        if plain(path).name == "rows.jsonl":
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
    files = row_files(folder)
    if any(plain(path).name != "rows.jsonl" for path in files):
        return folder / "rows*.jsonl"
    return files[0] if files else folder / "rows.jsonl"


def newest(rows: Iterable[Mapping]) -> list[dict]:
    """One row per sample and cell: a retry's row replaces the error row it repaired."""
    known: dict[tuple, dict] = {}
    for row in rows:
        known[key_of(row)] = dict(row)
    return list(known.values())


def run_folders(results: str | Path) -> list[Path]:
    """Every run's folder below a folder; raises where two of one experiment hold the same run."""
    return [folder for folder, _ in runs_below(results)]


def runs_below(results: str | Path) -> list[tuple[Path, dict]]:
    """Every run's folder below a folder and what its config.yaml says.

    Raises UserError where two of one experiment hold the same run: its rows would count twice. The same run in two
    experiments is no copy by mistake: each of them is a table of its own.
    """
    found = user_path(results).rglob(ANY)
    folders = sorted({path.parent for path in found if ROWS.fullmatch(plain(path).name)})
    runs = [(folder, stored(folder)) for folder in folders]
    refuse_copies((experiment_of(folder), known["run"], folder) for folder, known in runs)
    return runs


def refuse_copies(runs: Iterable[tuple[str, str, str | Path]]) -> None:
    """Refuses two folders with the same run of one experiment; `runs` are experiments, ids and folders."""
    homes: dict[tuple[str, str], str | Path] = {}
    for experiment, run, folder in runs:
        other = homes.setdefault((experiment, run), folder)
        if other != folder:
            raise UserError(
                f"{other} and {folder} are the same run, {run} of experiment {experiment}, and would count twice: "
                "keep one of them here and move the other out of the results"
            )


def experiment_of(folder: Path) -> str:
    """The experiment that a run's folder belongs to: the folder above it."""
    return Path(os.path.abspath(folder)).parent.name


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
    for folder, known in runs_below(results):
        identity = known["identity"]
        settings = {"run": known["run"], "model": identity["model"]["name"], "seed": identity["seed"]}
        frame = pd.DataFrame(in_sample_order(rows_by_file(folder, identity)))
        if frame.empty:
            continue
        frame = frame.assign(**settings, experiment=experiment_of(folder))
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
    found, homes = {}, {}
    for path in sorted(row_files(folder)):
        for line, row in enumerate(read_rows(path)):
            one = Stored(row, plain(path).name, line)
            refuse_twice(homes.setdefault(one.key, path), path, one.key)
            found[one.key] = one
    return found
