"""Tables and figures of tasks that report more than a curve: analyses of lost accuracy, and throughput.

A folder is a question: `task.py` says what is looked at, `observe.py` looks at it in the engine, `tables.py` and
`figures.py` make tables and figures of the rows.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

FOLDER = Path(__file__).parent
REPORTED = tuple(sorted(path.parent.name for path in FOLDER.glob("*/tables.py")))  # names of tasks
INTERVALS = "95% intervals over samples, from ten on"


@dataclass(frozen=True)
class Reporter:
    """What is made of one task's rows that is no curve: tables and figures by name, and what intervals are."""

    tables: Callable[[pd.DataFrame], dict[str, pd.DataFrame]]
    figures: Callable[[pd.DataFrame], Iterator[tuple[str, Figure]]]
    intervals: str


def reporter(rows: pd.DataFrame) -> Reporter | None:
    """What reports these rows; None for rows of tasks that are scored."""
    task = rows["task"].iloc[0] if len(rows) else None
    if task not in REPORTED:
        return None
    tables = import_module(f"{__name__}.{task}.tables")
    figures = import_module(f"{__name__}.{task}.figures")
    return Reporter(tables.tables, figures.figures, getattr(tables, "INTERVALS", INTERVALS))
