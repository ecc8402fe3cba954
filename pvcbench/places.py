"""Helpers for paths: they expand ~, tell library files from the user's, and detect whether a file has changed."""

import os
import sysconfig
from collections.abc import Iterable
from pathlib import Path

INSTALLED = ("site-packages", "dist-packages")
OWN: list[Path] = []  # folders that --config-dir named
STANDARD = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")}


def user_path(path: str | os.PathLike) -> Path:
    """A path with ~ and ~NAME as homes; a name such as ~x that is nobody's home stays a name."""
    return Path(os.path.expanduser(path))


def own_folders(*more: Path) -> list[Path]:
    """The folders of the user's configuration, the newest first; those given here are added."""
    for folder in more:
        if folder not in OWN:
            OWN.insert(0, folder)
    return list(OWN)


def of_library(file: Path) -> bool:
    """Whether a file is the standard library's or an installed package's."""
    return any(part in INSTALLED for part in file.parts) or not STANDARD.isdisjoint(file.parents)


def marks(paths: Iterable[Path]) -> dict[str, list[int]]:
    """The marks of files, and of folders with all that is in them: number, size and times, which every change moves."""
    found = {}
    for path in paths:
        for one in (path, *(sorted(path.rglob("*")) if path.is_dir() else ())):
            state = one.stat()
            found[str(one)] = [state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns]
    return found
