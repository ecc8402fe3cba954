"""What a finished run drew last: figures whose rows and whose code are still the same need not be drawn again."""

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from pvcbench.plots import drawn_from
from pvcbench.runs import environment
from pvcbench.runs.writing import write_whole

RECORD = "finished.json"


def figures(rows: pd.DataFrame, folder: Path, draw: Callable[[pd.DataFrame, Path], list[Path]]) -> list[Path]:
    """The figures of a run's folder, drawn only where their data, our code or matplotlib changed since, or one is gone.

    The record is written last, so that a drawing that was stopped is drawn again.
    """
    state = {"data": drawn_from.data_of(rows), "code": environment.source()}
    state["matplotlib"] = importlib.metadata.version("matplotlib")
    known = _read(folder / RECORD)
    paths = [folder / "figures" / name for name in known.pop("figures", [])]
    if paths and known == state and all(path.is_file() for path in paths):
        return paths
    paths = draw(rows, folder / "figures")
    write_whole(folder / RECORD, json.dumps(state | {"figures": [path.name for path in paths]}, indent=1) + "\n")
    return paths


def _read(path: Path) -> dict:
    """The record; empty where there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return dict(found) if isinstance(found, dict) and isinstance(found.get("figures"), list) else {}
    except (OSError, ValueError):
        return {}
