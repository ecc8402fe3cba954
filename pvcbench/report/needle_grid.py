"""The needle grid of a setting: mean score by depth and prompt length for every method and size."""

import pandas as pd

from pvcbench.plots.style import asked, budgets_of
from pvcbench.stats import summaries
from pvcbench.stats.failures import reach


def of(rows: pd.DataFrame) -> dict | None:
    """Methods with a square for each depth, size and length; None where samples have no depth and length.

    `columns` are the sizes, each for every length; a square is [mean score, text], or None without a score.
    """
    rows = rows.assign(depth=summaries.info(rows, "depth"), length=summaries.info(rows, "length"))
    rows = rows[rows["depth"].notna() & rows["length"].notna()]
    if rows.empty or not rows["score"].dropna().astype(float).between(0, 1).all():
        return None
    lengths, depths = sorted(rows["length"].unique()), sorted(rows["depth"].unique())
    full, budgets = rows["reference"].astype(bool), budgets_of(rows)
    panels = [{"name": "full cache", "cells": [panel(rows[full], lengths, depths)]}]
    for method in sorted(rows[~full]["method"].unique()):
        own = rows[~full & (rows["method"] == method)]
        cells = [panel(own[own["budget"] == budget], lengths, depths) for budget in budgets]
        panels.append({"name": method, "cells": cells})
    return {
        "lengths": [f"{length:,}" for length in lengths],
        "depths": [f"{depth:g}" for depth in depths],
        "sizes": [asked(budget) for budget in budgets],
        "panels": panels,
    }


def panel(cell: pd.DataFrame, lengths: list, depths: list) -> dict:
    """One method at one size: its squares by depth and length, or why it has none."""
    if not cell["score"].notna().any():
        end = reach(cell)
        return {"why": "not asked" if cell.empty else "failed" if end is None else f"out of reach (below {end:.0f}%)"}
    squares = [
        [square(cell[(cell["depth"] == depth) & (cell["length"] == length)]["score"]) for length in lengths]
        for depth in depths
    ]
    return {"squares": squares}


def square(scores: pd.Series) -> list | None:
    """The mean, and hits of samples in words."""
    found = scores.dropna().astype(float)
    return [round(float(found.mean()), 4), f"{round(float(found.sum()), 1):g}/{len(found)}"] if len(found) else None
