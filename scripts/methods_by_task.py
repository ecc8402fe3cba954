"""The picture of "which method, when": methods and tasks at one size, from the rows of the experiments of all methods.

It is drawn with the other pictures of the documents, by `python scripts/doc_images.py`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from pvcbench.plots import drawn_from
from pvcbench.plots.many_methods import Panel, by_task
from pvcbench.plots.style import FLOOR
from pvcbench.report.figures_over_runs import Drawing
from pvcbench.stats import perplexity, ranking
from scripts.numbers_methods import SIZES, rows_of

SIZE, LEAKING = SIZES[1], "reference"
TASKS = {  # experiment: its panel's title, its axis, and the columns of its summary
    "methods_needle": ("needles,\nquestion seen", "share found", ("score", "low", "high")),
    "methods_needle_agnostic": ("needles,\nquestion not seen", "share found", ("score", "low", "high")),
    "methods_ruler": ("RULER,\nquestion not seen", "mean score of its sets", ("score", "low", "high")),
    "methods_perplexity": (
        "continuation\n(less is better)",
        "NLL minus full's, nats",
        ("nll_difference", "nll_difference_low", "nll_difference_high"),
    ),
}
SYMLOG = {"value": "symlog", "linthresh": 0.01}
MOST_TASKS = 3  # a method stands in the picture if it was run in so many of them


def panels(results: Path) -> list[Panel]:
    """What each panel shows; a leaking reference has one name in all of them."""
    found = []
    for experiment, (title, label, columns) in TASKS.items():
        rows = rows_of(results, experiment)
        rows = rows.assign(method=rows["method"].mask(rows["method"].isin(ranking.leaking(rows)), LEAKING))
        table = perplexity.shown(rows)
        found.append(Panel(rows, table, title, label, columns, SYMLOG if columns[0] == "nll_difference" else None))
    return found


def placed(tasks: Sequence[Panel]) -> list[str]:
    """The methods of most tasks, best first by their mean place; the floor and the reference last."""
    shares = []
    for panel in tasks:
        cells = panel.table[(panel.table["budget"] == SIZE) & ~panel.table["reference"].astype(bool)]
        cells = cells[cells["score"].notna()].set_index("method")
        sign = -1 if "perplexity" in panel.table else 1
        shares.append((sign * cells["score"]).rank(pct=True))
    table = pd.concat(shares, axis=1)
    known = table[table.notna().sum(axis=1) >= MOST_TASKS].mean(axis=1)
    names = known.drop([FLOOR, LEAKING], errors="ignore").sort_values(ascending=False, kind="stable").index
    return [*names, FLOOR, LEAKING]


def picture(results: Path) -> Figure:
    """Methods and tasks at one size."""
    tasks = panels(results)
    counts = [f"{panel.rows['sample'].nunique()}" for panel in tasks]
    text = (
        f"the embedded model, {float(SIZE):.0%} of the cache; {', '.join(counts[:-1])} and {counts[-1]} samples\n"
        f"methods that were run in at least {MOST_TASKS} of these tasks, best on average first"
    )
    return by_task(tasks, SIZE, placed(tasks), text)


def drawings(results: Path) -> Iterator[Drawing]:
    """The picture with the hash of its data, where every experiment has been run."""
    if all((results / experiment).is_dir() for experiment in TASKS):
        data = drawn_from.fingerprint(*(rows_of(results, experiment) for experiment in TASKS))
        yield Drawing("figures", "methods_by_task", data, lambda: picture(results))
