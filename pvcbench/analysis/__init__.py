"""Why accuracy is lost, and what speed is won: tables and figures of tasks that have more to show than a curve.

`NAME_report.py` makes tables and figures of the rows of the task NAME; of an analysis of attention, `NAME.py` observes
a sample with the engine's rows and variants.
"""

from importlib import import_module
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parent
REPORTS = tuple(sorted(path.stem.removesuffix("_report") for path in FOLDER.glob("*_report.py")))
ANALYSES = tuple(name for name in REPORTS if (FOLDER / f"{name}.py").is_file())


def observer(task: str) -> ModuleType:
    """The module that observes samples: `observe(engine, task, prompt, points, draws, step)`."""
    return import_module(f"pvcbench.analysis.{task}")


def reporter(rows) -> ModuleType | None:
    """The module that reports these rows, `tables(rows)` and `figures(rows)`; None for rows of other tasks."""
    task = rows["task"].iloc[0] if len(rows) else None
    return import_module(f"pvcbench.analysis.{task}_report") if task in REPORTS else None
