"""Curves of many methods: a panel for each, the others in grey behind it, where one picture would be a tangle.

The full cache, the random floor and the leaking references stand in every panel, so that each is read against them.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from pvcbench.plots.style import (
    BESIDE,
    BLACK,
    DASHED,
    DOTTED,
    incomplete_entry,
    looks,
    mark_incomplete,
    panels_of,
)
from pvcbench.stats import ranking, sizes
from pvcbench.stats.failures import reach

MANY = 8  # methods beside the full cache that one picture still tells apart


def too_many(rows: pd.DataFrame) -> bool:
    """Whether a run has more methods than one picture tells apart."""
    return rows[~rows["reference"]]["method"].nunique() > MANY


def curves_of_many(
    rows: pd.DataFrame, table: pd.DataFrame, columns: Sequence[str], label: str, best: str, scale: dict | None = None
) -> Figure:
    """A panel per method, best first (`best`: highest or lowest mean of the sizes that all methods answered).

    `columns` are the table's value, low end and high end; `scale` goes to set_yscale, "linear" if not given. The full
    cache stands where the table has it, differences from it have it at 0.
    """
    known, style = table[table[columns[0]].notna()], looks(rows["method"].unique())
    others, level = known[~known["reference"]], known[known["reference"]][columns[0]].sum()
    order, measure = _order(others, columns[0], best), sizes.axis(table)
    beside = (*BESIDE, *sorted(ranking.leaking(rows)))
    figure, panels = panels_of(len(order), rows, 4, (2.3, 1.75))
    for name, axes in zip(order, panels, strict=True):
        axes.set_yscale(**(scale or {"value": "linear"}))
        axes.set_xlim(0, min(100, 115 * others[measure].astype(float).max()))
        axes.set_title(name, fontsize=8, fontweight="bold")
        for other, points in others.sort_values(measure).groupby("method"):
            colour, _, line = style[other] if other in beside else ("#CFCFCF", "", "-")
            above = 2 if other in beside else 1
            axes.plot(100 * points[measure], points[columns[0]], color=colour, linestyle=line, lw=0.8, zorder=above)
        axes.axhline(level, color=BLACK, linestyle=DASHED, lw=0.9)
        _own(axes, others[others["method"] == name].sort_values(measure), columns, style[name], measure)
        _mark_reach(axes, table[table["method"] == name], table, style[name][0])
    figure.supxlabel(sizes.label(table))
    figure.supylabel(label)
    handles = _legend(style, [name for name in beside if name in set(others["method"])])
    handles += [] if others["complete"].all() else [incomplete_entry()]
    figure.legend(handles=handles, loc="outside right upper", fontsize=8)
    return figure


def _order(others: pd.DataFrame, value: str, best: str) -> list[str]:
    """Methods by their mean over the budgets that all of them answered whole; by name where there is none such."""
    methods = sorted(others["method"].unique())
    counts = others[others["complete"]].groupby("budget")["method"].nunique()
    same = others[others["budget"].isin(counts[counts == len(methods)].index)]
    means = same.groupby("method")[value].mean() if len(same) else pd.Series(0.0, index=methods)
    return list(means.sort_values(ascending=best == "lowest", kind="stable").index)


def _own(axes, own: pd.DataFrame, columns: Sequence[str], look: tuple, measure: str) -> None:
    """A panel's own method: line, intervals and points."""
    value, low, high = columns
    colour, marker, _ = look
    x, y = 100 * own[measure].to_numpy(float), own[value].to_numpy(float)
    ends = np.maximum(0, np.abs(own[[low, high]].to_numpy(float).T - y))
    ends[~np.isfinite(ends)] = np.nan
    axes.errorbar(x, y, ends, color=colour, ecolor=colour, elinewidth=0.9, capsize=2, lw=1.8, zorder=4, clip_on=False)
    axes.plot(x, y, color=colour, marker=marker, markersize=5, linestyle="none", zorder=5, clip_on=False)
    for place in np.flatnonzero(~own["complete"]):
        mark_incomplete(axes, x[place], y[place], look, 5)


def _mark_reach(axes, cells: pd.DataFrame, table: pd.DataFrame, colour: str) -> None:
    """Where a method's curve has to end: no smaller cache can be had from it."""
    end = reach(cells)
    if end is not None:
        place = 100 * sizes.placed(table, end / 100)
        axes.axvline(place, color=colour, linewidth=0.9, linestyle=DOTTED, zorder=1)
        axes.text(place - 1, 0.5, f"reach {place:.0f}%", transform=axes.get_xaxis_transform(), fontsize=7, ha="right")


def _legend(style: dict, beside: Sequence[str]) -> list:
    """What every panel shows beside its own method."""
    handles = [Line2D([], [], color=BLACK, linestyle=DASHED, lw=0.9, label="full cache")]
    handles += [Line2D([], [], color=style[name][0], linestyle=style[name][2], lw=0.9, label=name) for name in beside]
    return [
        *handles,
        Line2D([], [], color="#CFCFCF", label="other methods"),
        Patch(color="#DDDDDD", label="bars: 95% intervals"),
    ]
