"""The rows of a data set as its source has them: from files, from the hub or from a generator, with a hash of them."""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from pvcbench.errors import UserError
from pvcbench.places import user_path
from pvcbench.tasks import files
from pvcbench.tasks.qa.description import Description

KINDS = (".jsonl", ".json", ".parquet", ".jsonl.gz", ".json.gz")


def load(one: Description, folder: Path | None) -> tuple[list[dict], str]:
    """All rows and their hash: from local files in a folder, or from the hub where there is no folder."""
    if folder is not None and one.source.local is not None:
        rows, checksum = from_files(folder / user_path(one.source.local), one.rows.field)
        if one.source.examples is None:
            return rows, checksum
        examples, more = from_files(folder / user_path(one.source.examples), one.rows.field)
        return [{**row, "examples": examples} for row in rows], f"{checksum} {more}"
    if one.source.hub is None:
        raise UserError(f"{one.name} lies on no hub: name the folder that has {one.source.local} with task.data_dir")
    rows = from_hub(one)
    content = json.dumps(rows, sort_keys=True, ensure_ascii=False, default=str).encode()
    return rows, hashlib.sha256(content).hexdigest()


def from_files(path: Path, field: str | None) -> tuple[list[dict], str]:
    """The rows of a file, or of all files of a folder in the order of their names."""
    if not path.exists():
        raise UserError(f"there is no {path}: put the data there, or name their folder with task.data_dir")
    parts = [path]
    if path.is_dir():
        parts = sorted(part for part in path.iterdir() if part.name.endswith(KINDS))
        if not parts:
            raise UserError(f"{path} holds no file that ends in {', '.join(KINDS)}")
    rows, hashed, wrong = [], hashlib.sha256(), []
    for part in parts:
        try:
            content = part.read_bytes()
        except OSError as error:
            raise UserError(f"{part} cannot be read: {error.strerror}") from error
        hashed.update(hashlib.sha256(content).digest())
        found, problems = read(part, content, field)
        rows += found
        wrong += [f"{part}, {one}" for one in problems]
    if wrong:
        more = [f"... and {len(wrong) - files.MOST} more"] if len(wrong) > files.MOST else []
        raise UserError("\n".join([*wrong[: files.MOST], *more]))
    return rows, hashed.hexdigest()


def read(path: Path, content: bytes, field: str | None) -> tuple[list[dict], list[str]]:
    """The rows of one file, and what is wrong with those that are none."""
    name = path.name
    if name.endswith(".gz"):
        try:
            name, content = name.removesuffix(".gz"), gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path} is no readable gzip file: get it again") from error
    if name.endswith(".parquet"):
        return parquet(path), []
    if name.endswith(".jsonl"):
        return json_lines(content, str(path))
    if not name.endswith(".json"):
        raise UserError(f"{path}: the name of a data file ends in one of {', '.join(KINDS)}")
    numbers = {"parse_int": files.Number, "parse_float": files.Number}
    try:
        found = json.loads(files.decoded(content, str(path)), **numbers)
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if isinstance(found, Mapping) and field is not None:
        found = found.get(field)
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        where = f"under {field!r}" if field is not None else "(rows.field names the key that holds it)"
        raise UserError(f"{path} holds no list of objects {where}")
    return found, []


def json_lines(content: bytes, name: str) -> tuple[list[dict], list[str]]:
    """The objects of a JSON Lines file, numbers as they are written."""
    rows, wrong = [], []
    for number, line in files.lines(content, name):
        try:
            rows.append(files.item(line))
        except files.Refused as error:
            wrong.append(f"line {number}: {error}")
    return rows, wrong


def parquet(path: Path) -> list[dict]:
    """The rows of a Parquet file."""
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is no readable Parquet file: {' '.join(str(error).split())[:200]}") from error


def from_hub(one: Description) -> list[dict]:
    """A data set's rows from the hub, as data only: no script of theirs is run."""
    import datasets

    source = one.source
    options = {"name": source.config, "split": source.split, "revision": source.revision}
    if source.features is not None:
        options["features"] = datasets.Features({name: feature(kind) for name, kind in source.features.items()})
    try:
        return [dict(row) for row in datasets.load_dataset(source.hub, **options)]
    except Exception as error:  # whatever a hub, a proxy, a cache or a disk can do
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        place = ", ".join([source.hub, *([source.config] if source.config else []), source.split])
        local = f"set task.data_dir to a folder with {source.local}" if source.local else "give a local file"
        raise UserError(f"{one.name} cannot be loaded from {place} ({reason}): {local}") from error


def feature(kind: object):
    """A feature of the hub's by its name; a list of one stands for a list of such values."""
    import datasets

    if isinstance(kind, list) and len(kind) == 1:
        return datasets.Sequence(datasets.Value(str(kind[0])))
    return datasets.Value(str(kind))


def text_of(value: object) -> str:
    """A value of a row as text: numbers as written, lists as Python writes them."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Iterable):
        return f"[{', '.join(str(one) if isinstance(one, files.Number) else repr(one) for one in value)}]"
    return "" if value is None else str(value)
