"""Paths as users write them."""

import os
from pathlib import Path


def user_path(path: str | os.PathLike) -> Path:
    """A path with ~ and ~NAME as homes; a name such as ~x that is nobody's home stays a name."""
    return Path(os.path.expanduser(path))
