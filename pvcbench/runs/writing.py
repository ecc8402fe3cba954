"""Writing files of a run so that a kill, a full disk or another writer loses nothing."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path


def _untear(path: Path) -> None:
    """Cuts off a last line without an end."""
    if not path.is_file():  # not there yet; what is no file is refused by who reads it
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
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # else a power cut may leave the name with nothing in it
    temporary.replace(path)
