"""Why accuracy is lost: analyses of attention, each in two modules of its task's name.

`NAME.py` observes a sample with the engine's rows and variants; `NAME_report.py` makes tables and figures of the rows.
"""

from importlib import import_module
from pathlib import Path
from types import ModuleType

ANALYSES = tuple(sorted(path.stem.removesuffix("_report") for path in Path(__file__).parent.glob("*_report.py")))


def observer(task: str) -> ModuleType:
    """The module that observes samples: `observe(engine, task, prompt, points, draws, step)`."""
    return import_module(f"pvcbench.analysis.{task}")


def reporter(rows) -> ModuleType | None:
    """The module that reports these rows, `tables(rows)` and `figures(rows)`; None for rows of other tasks."""
    task = rows["task"].iloc[0] if len(rows) else None
    return import_module(f"pvcbench.analysis.{task}_report") if task in ANALYSES else None
