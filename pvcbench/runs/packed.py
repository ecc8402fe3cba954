"""Row files that `gzip` has packed: a finished run's rows may lie as rows.jsonl.gz, a fraction of their size.

They are read as they lie. Whoever adds to such a file unpacks it first.
"""

import gzip
import os
import zlib
from pathlib import Path

from pvcbench.errors import UserError

SUFFIX = ".gz"


def plain(path: Path) -> Path:
    """The path of a row file as it is called when it is not packed."""
    return path.with_name(path.name.removesuffix(SUFFIX))


def content(path: Path) -> bytes:
    """What a row file holds, packed or not; raises UserError where it cannot be read."""
    advice = "put a whole copy of it in its place, or move it out of the results"
    try:
        raw = path.read_bytes()
        if not path.name.endswith(SUFFIX):
            return raw
        if not raw:
            raise EOFError("it is empty")
        return gzip.decompress(raw)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is not a whole gzip file ({error}): {advice}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {advice}") from error


def unpacked(path: Path) -> Path:
    """The row file not packed: a packed one is replaced by what it holds."""
    target = plain(path)
    if target == path:
        return path
    raw, temporary = content(path), target.with_name(f".{target.name}.tmp")
    with temporary.open("wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(target)
    path.unlink()
    return target
