"""Paths as users write them, and whose files they are."""

import os
import sysconfig
from pathlib import Path

INSTALLED = ("site-packages", "dist-packages")
STANDARD = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")}


def user_path(path: str | os.PathLike) -> Path:
    """A path with ~ and ~NAME as homes; a name such as ~x that is nobody's home stays a name."""
    return Path(os.path.expanduser(path))


def of_library(file: Path) -> bool:
    """Whether a file is the standard library's or an installed package's."""
    return any(part in INSTALLED for part in file.parts) or not STANDARD.isdisjoint(file.parents)
