"""Scores by turn of a conversation: what a cache that was cut at its first turn still answers at later ones."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pvcbench.plots.canvas import WIDTH, beside, fit, interval_entry, panels_of
from pvcbench.plots.many_methods import too_many
from pvcbench.plots.style import (
    asked,
    budgets_of,
    entry,
    incomplete_entry,
    looks,
    mark_incomplete,
    ordered,
    score_label,
)
from pvcbench.stats import ranking, summaries


def curve_by_turn(rows: pd.DataFrame) -> Figure | None:
    """Mean score by turn: a panel for each budget, a line for each method, and the full cache in each.

    Marks of one turn stand beside each other. Of too many methods to tell apart `summary.csv` has the numbers.
    """
    if "sample_info" not in rows or summaries.info(rows, "turn").nunique() < 2 or too_many(rows):
        return None
    table = summaries.breakdown(rows)
    table = table[(table["kind"] == "turn") & table["score"].notna()]
    known = table[~table["reference"].astype(bool)]
    budgets = [budget for budget in budgets_of(rows) if budget in set(known["budget"])]
    if not budgets:
        return None
    style, names = looks(rows["method"].unique()), ordered(table["method"], ranking.leaking(rows))
    handles = [entry(name, style[name]) for name in names]
    handles += [interval_entry()] + ([] if table["complete"].all() else [incomplete_entry()])
    figure, panels = panels_of(len(budgets), rows, handles)
    turns = sorted(table["part"].astype(int).unique())
    for budget, axes in zip(budgets, panels, strict=True):
        shown = table[(table["budget"] == budget) | table["reference"].astype(bool)]
        axes.set(title=f"asked {asked(budget)}", xticks=turns, xlim=(turns[0] - 0.5, turns[-1] + 0.5))
        fit(axes, table)
        step = min(5.0, 0.6 * 72 * WIDTH / min(3, len(budgets)) / len(turns) / max(1, len(names)))
        for number, name in enumerate(names):
            _line(axes, shown[shown["method"] == name], style[name], beside(axes, number, len(names), step))
    figure.supxlabel("turn of the conversation (marks of one turn stand side by side)", fontsize=9)
    figure.supylabel(score_label(rows), fontsize=9)
    return figure


def _line(axes, cells: pd.DataFrame, look: tuple, where) -> None:
    """One method's scores by turn with their intervals; those of some samples only are hollow."""
    if cells.empty:
        return
    colour, marker, line = look
    cells = cells.assign(turn=cells["part"].astype(int)).sort_values("turn")
    x, score, low, high = (cells[key].to_numpy(float) for key in ("turn", "score", "low", "high"))
    low, high = (np.where(np.isfinite(end), end, np.nan) for end in (low, high))
    axes.vlines(x, low, high, color=colour, linewidth=1.1, alpha=0.8, transform=where)
    marker = "none" if bool(cells["reference"].iloc[0]) else marker
    same = {"color": colour, "linestyle": line, "marker": marker, "markersize": 5, "linewidth": 1.1, "zorder": 3}
    name = cells["method"].iloc[0]
    axes.plot(x, score, clip_on=False, markeredgecolor="white", transform=where, label=name, **same)
    for place in np.flatnonzero(~cells["complete"].astype(bool)):
        mark_incomplete(axes, x[place], score[place], look, 5, transform=where)
