"""Many methods: a panel for each size, a line for each method, where one picture of curves would be a tangle.

Every panel has the same order, by the score at the middle size: the eye then follows one method from size to size, and
names stand once, at the left. Sorted within each panel they would have to stand in each, and a method would jump.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from pvcbench.plots.canvas import WIDTH, head
from pvcbench.plots.style import (
    BLACK,
    DASHED,
    DOTTED,
    FLOOR,
    GREY,
    amount,
    asked,
    budgets_of,
    incomplete_entry,
    looks,
    mark_incomplete,
    methods_of,
    subject,
)
from pvcbench.stats import ranking, sizes, ties
from pvcbench.stats.failures import reach, without_value

MANY = 8  # methods beside the full cache that one picture still tells apart
SHADE, FAINT = "#DCE6EF", "#E4E4E4"
LINE = 0.19  # inches that a method takes in a panel
WIDE = 4  # panels in a row


@dataclass(frozen=True)
class Panel:
    """What a panel shows: an experiment's rows and its summary as people read it, which columns of it, and the axis."""

    rows: pd.DataFrame
    table: pd.DataFrame
    title: str
    label: str
    columns: Sequence[str] = ("score", "low", "high")  # the value and the ends of its interval
    scale: dict | None = None  # for set_xscale, linear if not given


def too_many(rows: pd.DataFrame) -> bool:
    """Whether a run has more methods than one picture tells apart."""
    return rows[~rows["reference"]]["method"].nunique() > MANY


def dots(
    rows: pd.DataFrame, table: pd.DataFrame, columns: Sequence[str], label: str, best: str, scale: dict | None = None
) -> Figure:
    """A panel per size asked for: every method's value with its interval, best at the top (`best`: highest or lowest).

    `columns` are the table's value, low end and high end; `scale` goes to set_xscale, "linear" if not given. The full
    cache is a line where the table has it, and at 0 in differences from it. Methods that no paired test tells from the
    best one are shaded; leaking references stand below a rule, unranked.
    """
    budgets, style = budgets_of(rows), looks(rows["method"].unique())
    names, apart = order(table, columns[0], budgets, best, ranking.leaking(rows))
    wide = min(WIDE, len(budgets))
    tall = -(-len(budgets) // wide)
    high = 0.5 + LINE * (len(names) + len(apart))
    figure = Figure(figsize=(WIDTH, 1.3 + high * tall), layout="constrained")
    panels = figure.subplots(tall, wide, squeeze=False, sharex=True, sharey=True)
    for unused in panels.flat[len(budgets) :]:
        unused.remove()
    shaded = False
    for budget, axes in zip(budgets, panels.flat, strict=False):
        shaded |= _fill(axes, Panel(rows, table, "", label, columns, scale), budget, (names, apart), style)
        _dress(axes, names, apart, f"{asked(budget)} of the cache" if shares(budget) else asked(budget))
    figure.supxlabel(label, fontsize=9)
    head(figure, subject(rows), _legend(rows, table, shaded))
    return figure


def by_task(tasks: Sequence[Panel], budget: str, names: Sequence[str], text: str) -> Figure:
    """A panel per task at one size asked for: the named methods' values with their intervals, in the same order.

    Shades, rules and words are those of `dots`; the groups are of all methods of a task, named or not. `text` is the
    title.
    """
    rows, table = (pd.concat([getattr(panel, kind) for panel in tasks]) for kind in ("rows", "table"))
    leaks, style = ranking.leaking(rows), looks(rows["method"].unique())
    lines = [name for name in names if name not in leaks], [name for name in names if name in leaks]
    figure = Figure(figsize=(WIDTH, 2.0 + LINE * len(names)), layout="constrained")
    shaded = False
    for panel, axes in zip(tasks, figure.subplots(1, len(tasks), squeeze=False, sharey=True).flat, strict=True):
        shaded |= _fill(axes, panel, budget, lines, style)
        _dress(axes, *lines, panel.title)
        axes.set_xlabel(panel.label, fontsize=8)
        axes.tick_params(axis="x", labelsize=7.5)
    head(figure, text, _legend(rows, table, shaded))
    return figure


def shares(budget: str) -> bool:
    """Whether a size asked for is a share of the cache: not entries, and not what a method's own settings give."""
    return amount(budget) is not None and not budget.isdigit()


def order(
    table: pd.DataFrame, value: str, budgets: Sequence[str], best: str, leaks: set[str]
) -> tuple[list[str], list[str]]:
    """Methods from best to worst at the middle size, incomplete ones last but for the floor; then what leaks."""
    common = [budget for budget in budgets if amount(budget) is not None] or budgets
    middle = table[table["complete"] & (table["budget"] == common[len(common) // 2])]
    middle = middle.set_index("method")[value].astype(float)
    names, sign = methods_of(table), 1 if best == "lowest" else -1

    def place(name: str) -> tuple:
        known = middle.get(name, np.nan)
        return name == FLOOR, bool(np.isnan(known)), 0.0 if np.isnan(known) else sign * known

    return sorted((n for n in names if n not in leaks), key=place), [name for name in names if name in leaks]


def _fill(axes, panel: Panel, budget: str, lines: tuple[Sequence[str], Sequence[str]], style: dict) -> bool:
    """The values of methods at a size, ranked ones above, with the full cache and the floor; whether any is shaded."""
    value, scale = panel.columns[0], panel.scale or {"value": "linear"}
    cells = panel.table[panel.table["budget"] == budget].set_index("method")
    full = panel.table[panel.table["reference"].astype(bool)][value].dropna()
    group = ties.with_the_best(panel.rows, panel.table, budget)
    axes.set_xscale(**scale)
    axes.axvline(full.iloc[0] if len(full) else 0.0, color=BLACK, linestyle=DASHED, linewidth=1, zorder=1)
    if FLOOR in cells.index and pd.notna(cells.loc[FLOOR, value]):
        axes.axvline(cells.loc[FLOOR, value], color=GREY, linestyle=DOTTED, linewidth=1, zorder=1)
    for place, name in enumerate([*lines[0], *lines[1]]):
        if name in group:
            axes.axhspan(place - 0.5, place + 0.5, color=SHADE, linewidth=0, zorder=0)
        if name in cells.index or amount(budget) is not None:
            cell = cells.loc[name] if name in cells.index else None
            _cell(axes, place, cell, panel.table, panel.columns, style[name])
    return bool(group)


def _cell(axes, place: int, cell: pd.Series | None, table: pd.DataFrame, columns: Sequence[str], look: tuple) -> None:
    """One method's value and interval on its line, or a word that says why there is none."""
    value, low, high = (np.nan if cell is None else float(cell[name]) for name in columns)
    if np.isnan(value):
        white = {"facecolor": "white", "linewidth": 0, "pad": 0.5}
        told = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 7, "bbox": white}
        axes.text(0.09, place, _absent(cell, table), **told)
        return
    colour, marker, _ = look
    ends = [end if np.isfinite(end) else value for end in (low, high)]
    axes.hlines(place, *ends, color=colour, linewidth=1.3, zorder=2)
    if not cell["complete"]:
        mark_incomplete(axes, value, place, look, 4)
        return
    same = {"color": colour, "linestyle": "none", "markersize": 5, "clip_on": False, "zorder": 3}
    axes.plot(value, place, marker=marker, **same)
    other = _other_size(cell)
    if other:
        axes.text(0.98, place, other, transform=axes.get_yaxis_transform(), ha="right", va="center", fontsize=6.5)


def _absent(cell: pd.Series | None, table: pd.DataFrame) -> str:
    """Why a method has no value at a size."""
    if cell is None:
        return "not run"
    end = reach(pd.DataFrame([cell]))
    if end is None:
        return without_value(cell["error"])
    return f"cannot go below {100 * sizes.placed(table, end / 100):.0f}%"


def _other_size(cell: pd.Series) -> str:
    """What a cell kept, where that is more than a tenth off what was asked."""
    wanted, entries = amount(cell["budget"]), cell["budget"].isdigit()
    kept = float(cell["kept_entries" if entries else "kept_fraction"])
    if wanted is None or abs(kept - wanted) <= sizes.OFF * wanted:
        return ""
    return f"kept {kept:.0f}" if entries else f"kept {kept:.0%}"


def _dress(axes, names: Sequence[str], apart: Sequence[str], title: str) -> None:
    """A panel's title, its lines' names, and the rule above what is not ranked."""
    axes.set_title(title, fontsize=9)
    known = [f"{name} (floor)" if name == FLOOR else name for name in names]
    axes.set_yticks(range(len(names) + len(apart)), [*known, *(f"{name} (leaks)" for name in apart)], fontsize=8)
    axes.set_ylim(len(names) + len(apart) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", color=FAINT, linewidth=0.6, zorder=0)
    axes.set_axisbelow(True)
    if apart:
        axes.axhline(len(names) - 0.5, color=BLACK, linewidth=0.8)


def _legend(rows: pd.DataFrame, table: pd.DataFrame, shaded: bool) -> list:
    """What the lines and the shade of every panel are."""
    handles = [Line2D([], [], color=BLACK, linestyle=DASHED, linewidth=1, label="full cache")]
    if (rows["method"] == FLOOR).any():
        handles.append(Line2D([], [], color=GREY, linestyle=DOTTED, linewidth=1, label=f"{FLOOR}, the floor"))
    handles.append(Line2D([], [], color=BLACK, linewidth=1.3, marker="o", markersize=5, label="mean, 95% interval"))
    if shaded:
        handles.append(Patch(color=SHADE, label="not told apart from the best (paired tests, Holm, 5%)"))
    return handles + ([] if table[table["samples"] > 0]["complete"].all() else [incomplete_entry()])
