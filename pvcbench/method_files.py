"""Files that methods name, such as trained predictors: what they hold, read once and never run.

A method lists the settings that are files in `files` (see `pvcbench/policy.py`), and reads them here while it scores:

    weights = tensors(self.file)  # of a safetensors file, by name

Files must be there before a model is loaded. What they hold is part of the run id, so another content under the same
name is another run.
"""

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from shlex import quote
from types import MappingProxyType

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from pvcbench.errors import UserError
from pvcbench.places import marks

PICKLES = (b"PK\x03\x04", b"\x80")  # how the files begin that torch.save writes, now and before


def require_file(setting: str, path: Path | None) -> None:
    """Raises UserError where a setting names no file that can be read."""
    if path is None:
        raise UserError(f"{setting}: which file? set {setting}=FILE (the method's card says what it holds)")
    if not path.is_file():
        raise UserError(f"{setting}: there is no file {path}")
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise UserError(f"{setting}: {path} cannot be read: {error.strerror}") from error


def tensors(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a safetensors file by name; a pickle is refused, since reading one can run anything."""
    return _tensors(path, _mark(path))


def document(path: Path) -> object:
    """What a JSON file holds; it is shared by all who ask, so change nothing in it."""
    return _document(path, _mark(path))


def numbers(path: Path) -> tuple[tuple[float, ...], ...]:
    """The rows of a text file of numbers that white space or commas separate, all of one length."""
    return _numbers(path, _mark(path))


def _mark(path: Path | None) -> tuple[int, ...]:
    """What changes with a file, so that nothing is remembered that it holds no more."""
    if path is None:
        raise UserError("a method that reads a file was not told which (its card says what the file holds)")
    try:
        return tuple(marks([path])[str(path)])
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


@lru_cache(maxsize=4)
def _tensors(path: Path, mark: tuple[int, ...]) -> Mapping[str, Tensor]:
    content = _content(path)
    try:
        return MappingProxyType(load(content))
    except (SafetensorError, ValueError, KeyError) as error:
        if content.startswith(PICKLES):
            told = "a pickle, which can run code of its own when it is read: write its tensors into a safetensors file "
            told += f"once, where you trust it, and name that. {as_safetensors(path)}"
        else:
            told = f"no safetensors file: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{path} is {told}") from error


def as_safetensors(path: Path) -> str:
    """A command that writes the tensors of a pickle into a safetensors file, those inside lists by their number."""
    code = (
        "import sys, torch; from safetensors.torch import save_file; "
        "flat = lambda x, at=(): {'.'.join(at): x.clone().contiguous()} if torch.is_tensor(x) else {n: t for k, v in "
        "(x.items() if hasattr(x, 'items') else enumerate(x) if isinstance(x, (list, tuple)) else ()) "
        "for n, t in flat(v, (*at, str(k))).items()}; "
        "save_file(flat(torch.load(sys.argv[1], map_location='cpu', weights_only=True)), sys.argv[2])"
    )
    return f'python -c "{code}" {quote(str(path))} {quote(str(path.with_suffix(".safetensors")))}'


@lru_cache(maxsize=4)
def _document(path: Path, mark: tuple[int, ...]) -> object:
    try:
        return json.loads(_content(path).decode("utf-8-sig"))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are both
        raise UserError(f"{path} is no JSON file: {' '.join(str(error).split())[:200]}") from error
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply") from error


@lru_cache(maxsize=4)
def _numbers(path: Path, mark: tuple[int, ...]) -> tuple[tuple[float, ...], ...]:
    rows = []
    for place, line in enumerate(_content(path).decode("utf-8-sig", "replace").splitlines(), start=1):
        words = line.replace(",", " ").split()
        try:
            row = tuple(map(float, words))
        except ValueError as error:
            raise UserError(f"{path}, line {place}: wanted numbers, found {line[:60]!r}") from error
        if not all(map(math.isfinite, row)):
            raise UserError(f"{path}, line {place}: wanted finite numbers, found {line[:60]!r}")
        if row and rows and len(row) != len(rows[0]):
            raise UserError(f"{path}, line {place}: {len(row)} numbers, where the first row has {len(rows[0])}")
        rows += [row] if row else []
    if not rows:
        raise UserError(f"{path} holds no numbers")
    return tuple(rows)
