"""Curves of many methods: a panel for each, the others in grey behind it, where one picture would be a tangle.

The full cache, the random floor and the leaking references stand in every panel, so that each is read against them.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from pvcbench.looks import BESIDE, BLACK, DASHED, DOTTED, looks, panels_of, reach, size_label

MANY = 8  # methods beside the full cache that one picture still tells apart


def too_many(rows: pd.DataFrame) -> bool:
    """Whether a run has more methods than one picture tells apart."""
    return rows[~rows["reference"]]["method"].nunique() > MANY


def curves_of_many(
    rows: pd.DataFrame, table: pd.DataFrame, columns: Sequence[str], label: str, best: str, scale: dict | None = None
) -> Figure:
    """A panel per method, best first (`best`: highest or lowest mean).

    `columns` are the table's value, low end and high end; `scale` goes to set_yscale, "linear" if not given. The full
    cache stands where the table has it, differences from it have it at 0.
    """
    value, low, high = columns
    known, style = table[table[value].notna()], looks(rows["method"].unique())
    others, level = known[~known["reference"]], known[known["reference"]][value].sum()
    means = others.groupby("method")[value].mean().sort_values(ascending=best == "lowest")
    figure, panels = panels_of(len(means), rows, 4, (2.3, 1.75))
    for name, axes in zip(means.index, panels, strict=True):
        axes.set_yscale(**(scale or {"value": "linear"}))
        axes.set_xlim(0, min(100, 115 * others["kept_fraction"].astype(float).max()))
        axes.set_title(name, fontsize=8, fontweight="bold")
        for other, points in others.sort_values("kept_fraction").groupby("method"):
            colour, _, line = style[other] if other in BESIDE else ("#CFCFCF", "", "-")
            order = 2 if other in BESIDE else 1
            axes.plot(100 * points["kept_fraction"], points[value], color=colour, linestyle=line, lw=0.8, zorder=order)
        axes.axhline(level, color=BLACK, linestyle=DASHED, lw=0.9)
        own = others[others["method"] == name].sort_values("kept_fraction")
        x, y = 100 * own["kept_fraction"].to_numpy(float), own[value].to_numpy(float)
        ends = np.maximum(0, np.abs(own[[low, high]].to_numpy(float).T - y))
        colour, marker, line = style[name]
        axes.errorbar(
            x, y, ends, color=colour, ecolor=colour, elinewidth=0.9, capsize=2, lw=1.8, zorder=4, clip_on=False
        )
        axes.plot(x, y, color=colour, marker=marker, markersize=5, linestyle="none", zorder=5, clip_on=False)
        _mark_reach(axes, table[table["method"] == name], colour)
    figure.supxlabel(size_label(rows))
    figure.supylabel(label)
    figure.legend(handles=_legend(style, set(others["method"])), loc="outside right upper", fontsize=8)
    return figure


def _mark_reach(axes, cells: pd.DataFrame, colour: str) -> None:
    """Where a method's curve has to end: no smaller cache can be had from it."""
    end = reach(cells["error"])
    if end is not None:
        axes.axvline(end, color=colour, linewidth=0.9, linestyle=DOTTED, zorder=1)
        axes.text(end - 1, 0.5, f"reach {end:.0f}%", transform=axes.get_xaxis_transform(), fontsize=7, ha="right")


def _legend(style: dict, methods: set[str]) -> list:
    """What every panel shows beside its own method."""
    handles = [Line2D([], [], color=BLACK, linestyle=DASHED, lw=0.9, label="full cache")]
    for name in BESIDE:
        if name in methods:
            handles.append(Line2D([], [], color=style[name][0], linestyle=style[name][2], lw=0.9, label=name))
    return [
        *handles,
        Line2D([], [], color="#CFCFCF", label="other methods"),
        Patch(color="#DDDDDD", label="bars: 95% intervals"),
    ]
