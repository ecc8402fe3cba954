"""Marks each figure and table with a hash of its data, and lists beside it what was drawn, to find stale ones.

The hash is of data alone, rows and published numbers, in whatever order and file they come and wherever they lie.
`pvcbench figures --check` computes it again from the rows and compares, without drawing.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import pandas as pd
from PIL import Image

from pvcbench.errors import UserError
from pvcbench.plots import published

LIST = "drawn.json"
KEY = "data-sha256"
PLACES = ("folder", "experiment", "leaks", "reason", "reach")  # columns that the loader adds, and which say nothing new
Table = pd.DataFrame | Iterable[Mapping]


def fingerprint(*tables: Table) -> str:
    """The sha256 of some tables: their lines as sorted JSON, without what is empty and without where rows lie."""
    digest = hashlib.sha256()
    for table in tables:
        lines = table.drop(columns=[*PLACES], errors="ignore").to_dict("records") if _is_frame(table) else table
        texts = sorted(map(_line, lines))
        digest.update("".join(f"{text}\n" for text in [*texts, ""] if texts).encode())
    return digest.hexdigest()


def data_of(rows: pd.DataFrame) -> str:
    """The hash of what the figures of one run are drawn from: its rows, and published numbers that stand beside."""
    return fingerprint(rows, published.beside(rows))


def _is_frame(table: Table) -> bool:
    return isinstance(table, pd.DataFrame)


def _line(record: Mapping) -> str:
    """A record as JSON; a whole number is the same one as an integer and as a float, which pandas turns it into."""
    known = {str(key): _plain(value) for key, value in record.items()}
    known = {key: value for key, value in known.items() if value is not None}
    return json.dumps(known, sort_keys=True, ensure_ascii=False)


def _plain(value):
    value = value.item() if hasattr(value, "item") else value  # numpy's scalars
    if value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return None
    return int(value) if isinstance(value, float) and value.is_integer() else value


def embedded(path: Path) -> str | None:
    """The hash that a PNG, an SVG or a table carries; None where there is none."""
    if path.suffix == ".png":
        with Image.open(path) as image:
            return image.info.get(KEY)
    found = re.search(rf"{KEY}: ([0-9a-f]{{64}})", path.read_text(encoding="utf-8"))
    return found[1] if found else None


def metadata(ending: str, data: str) -> dict:
    """What a figure's file says of itself, for matplotlib: the hash, and neither dates nor versions."""
    if ending == "png":
        return {"Software": None, KEY: data}
    return {"Date": None, "Creator": None, "Source": f"{KEY}: {data}"}


def listed(folder: Path) -> dict[str, list[str]]:
    """The files that were drawn into a folder, each with the JSON files beside it that it shows (none: rows)."""
    path = folder / LIST
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): [str(source) for source in sources] for name, sources in found.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path} is not a list of figures: delete it and draw them again") from error


def record(folder: Path, paths: Iterable[Path], sources: Iterable[str] = ()) -> None:
    """Adds files to a folder's list."""
    _write(folder, listed(folder) | {path.name: list(sources) for path in paths})


def tidy(folder: Path, paths: Iterable[Path]) -> None:
    """Removes what was drawn here before and is no longer: files that the list names and `paths` does not."""
    known, names = listed(folder), {path.name for path in paths}
    for name in set(known) - names:
        (folder / name).unlink(missing_ok=True)
    if known:
        _write(folder, {name: sources for name, sources in known.items() if name in names})


def _write(folder: Path, files: Mapping[str, list[str]]) -> None:
    text = json.dumps(dict(sorted(files.items())), indent=0) + "\n"
    (folder / LIST).write_text(text, encoding="utf-8")


def complaints(folder: Path, expected: Callable[[str], str | None]) -> Iterator[str]:
    """What is wrong in a folder of drawings: stale, missing and orphaned files, each in one line.

    `expected(stem)` is the hash that a drawing should carry, None for one that should not be there.
    """
    files = listed(folder)
    for name in sorted(files):
        path, data = folder / name, expected(Path(name).stem)
        if data is None:
            yield f"orphaned: {path} (nothing here is drawn under that name)"
        elif not path.is_file():
            yield f"missing: {path}"
        elif embedded(path) != data:
            yield f"stale: {path} (its data has changed since)"
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if path.name not in files and path.name != LIST:
                yield f"orphaned: {path} ({LIST} does not list it)"


def fresh(folder: Path, data: str) -> bool:
    """Whether a folder has drawings, all of them of this data and none missing."""
    return bool(listed(folder)) and not any(complaints(folder, lambda stem: data))


def source_hash(folder: Path, name: str) -> str | None:
    """The hash of the JSON files that one listed drawing shows; None where it shows none or one of them is gone."""
    sources = [folder.parent / source for source in listed(folder).get(name, [])]
    if not sources or not all(path.is_file() for path in sources):
        return None
    return fingerprint(*([json.loads(path.read_text(encoding="utf-8"))] for path in sources))
