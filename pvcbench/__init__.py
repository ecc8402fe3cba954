"""pvcbench: what a language model still knows when its KV cache is cut.

import pvcbench
table = pvcbench.evaluate("smollm2", "needle", ["pvc", "h2o"], budgets=[0.25, 0.5], limit=10)
"""

from importlib import import_module
from pathlib import Path

from pvcbench.version import VERSION as __version__

__all__ = ["Method", "Prompt", "Sample", "Task", "__version__", "evaluate", "load"]
__path__.append(str(Path(__file__).parent / "former"))  # `python -m pvcbench.verify` and the like, for this release
HOMES = {  # imported when they are first asked for, since torch takes seconds
    "Method": "pvcbench.policy",
    "Prompt": "pvcbench.tasks.prompts",
    "Sample": "pvcbench.tasks.base",
    "Task": "pvcbench.tasks.base",
}


def __getattr__(name: str):
    if name in HOMES:
        return getattr(import_module(HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


def load(results="results"):
    """All rows of all runs below a folder as one pandas DataFrame, with the run's id, experiment and settings.

    Raises `pvcbench.errors.UserError` where there are none.
    """
    from pvcbench.runs.rows import load_table

    return load_table(results)


def evaluate(model="smollm2", task="needle", methods=("pvc",), budgets=None, **settings):
    """Runs a benchmark and returns its summary, one line per method and budget, as a pandas DataFrame.

    `model` and `task` are names of configurations or objects (a `LoadedModel`, a `Task`); `methods` is a list of names
    or a dictionary of names to `Method` objects. Other settings are those of the command line, with dots as double
    underscores or as dictionaries: `seed=1`, `limit=10`, `results="out"`,
    `task__lengths=[2048]`, `model__name="ORG/NAME"`, `wandb={"mode": "disabled"}`.
    The full cache is always added; a warning says where it answers next to nothing, or where a method failed in all of
    its cells. The table's `attrs` say the run's `folder` and how many rows were `measured` now; where a run was
    finished before, a line on stderr says so.
    Raises `pvcbench.errors.UserError` with one line that says what to do.
    """
    import warnings

    from pvcbench.plots import cautions
    from pvcbench.runs import from_python, runner

    config, objects = from_python.understood(model, task, methods, budgets, settings)
    result = runner.run(config, **objects)
    from_python.tell(result)
    for line in (*cautions.loud(result.rows), *result.failed):
        warnings.warn(line, stacklevel=2)
    result.summary.attrs |= {"folder": str(result.folder), "measured": result.measured}
    return result.summary
