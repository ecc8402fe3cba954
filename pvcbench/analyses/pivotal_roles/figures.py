"""Pictures of the parts of a context: their shares by layer, what hiding each costs, and who shares them."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from pvcbench.analyses.common import canvas, field, intervals
from pvcbench.analyses.pivotal_roles.tables import CONTROLLED, DISTANCES, HIDDEN, OTHERS, PARTS, increase, readings_of
from pvcbench.plots.style import BLACK, BLUE, DASHED, GREEN, GREY, ORANGE, SKY

COLOURS = {"shared": BLUE, "shared_no_sinks": SKY, "non_shared": ORANGE, "non_pvc": GREEN}


AREAS = (BLUE, ORANGE, "#DDDDDD")


MARKERS = {"shared": "s", "shared_no_sinks": "o", "non_shared": "D", "non_pvc": "^"}


def figures(rows: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Shares of the parts, what hiding them costs, and whose PvC non-PvC entries are."""
    if any(True for _ in readings_of(rows)):
        yield "shares", _shares_figure(rows)
        yield "hiding", _hiding_figure(rows)
        yield "non_pvc", _others_figure(rows)


def _panels(rows: pd.DataFrame, **how):
    """A panel per group and reading: (figure, panels, their cells)."""
    cells = list(readings_of(rows))
    figure, panels = canvas(rows, [f"{name}\nPvC: {reading}" for name, _, reading in cells], **how)
    return figure, panels, cells


def _shares_figure(rows: pd.DataFrame) -> Figure:
    figure, panels, cells = _panels(rows)
    for axes, (_, chosen, reading) in zip(panels, cells, strict=True):
        layers, below = chosen["observed"].iloc[0]["layers"], 0.0
        for number, part in enumerate(PARTS):
            values = 100 * field(chosen, "readings", reading, "entries", part) + below
            mean, low, high = intervals(values, chosen["cluster"], (0.0, 100.0))
            bottom = 0.0 if number == 0 else intervals(below, chosen["cluster"])[0]
            axes.fill_between(layers, bottom, mean, color=AREAS[number], linewidth=0)
            if number < 2:
                axes.errorbar(layers, mean, _lengths(mean, low, high), color=BLACK, linewidth=0.8, elinewidth=0.8)
            below = values
        axes.set(ylim=(0, 100), xlim=(layers[0] - 0.4, layers[-1] + 0.4))
    handles = [Patch(color=colour, label=name) for colour, name in zip(AREAS, PARTS.values(), strict=True)]
    _finish(figure, handles, "layer", "entries before the recent rows, %")
    return figure


def _hiding_figure(rows: pd.DataFrame) -> Figure:
    figure, panels, cells = _panels(rows)
    for axes, (_, chosen, reading) in zip(panels, cells, strict=True):
        axes.axhline(0, color=GREY, linewidth=0.8)
        for between in np.arange(1, len(DISTANCES)) - 0.5:
            axes.axvline(between, color="#DDDDDD", linewidth=0.8)
        for number, part in enumerate(HIDDEN):
            places = np.arange(len(DISTANCES)) + 0.22 * (number - 1.5)
            look = {"color": COLOURS[part], "marker": MARKERS[part], "linestyle": "none", "markersize": 5, "capsize": 2}
            _points(axes, places - 0.04, chosen, increase(chosen, reading, part), look)
            if part in CONTROLLED:
                control = increase(chosen, reading, f"control_{part}")
                _points(axes, places + 0.05, chosen, control, look | {"markerfacecolor": "white", "markersize": 4})
        axes.set_yscale("symlog", linthresh=0.01)
        axes.set_xticks(range(len(DISTANCES)), DISTANCES)
    handles = [
        Line2D([], [], color=COLOURS[part], marker=MARKERS[part], linestyle="none", label=name)
        for part, name in HIDDEN.items()
    ]
    open_ = {"color": BLACK, "marker": "o", "markerfacecolor": "white", "linestyle": "none"}
    handles.append(Line2D([], [], label="open: as many at random", **open_))
    _finish(
        figure,
        handles,
        "tokens after the place where the context ends",
        "NLL increase, nats per token (linear below 0.01)",
    )
    return figure


def _points(axes, places, rows, values, look) -> None:
    mean, low, high = intervals(values, rows["cluster"])
    axes.errorbar(places, mean, _lengths(mean, low, high), **look)


def _lengths(mean, low, high) -> np.ndarray:
    """Error bars of intervals; none where there is no interval."""
    return np.nan_to_num(np.maximum(0.0, [mean - low, high - mean]))


def _others_figure(rows: pd.DataFrame) -> Figure:
    cells = list(readings_of(rows))
    names = list(dict.fromkeys(name for name, *_ in cells))
    figure, panels = canvas(rows, names)
    readings = list(dict.fromkeys(reading for *_, reading in cells))
    looks = dict(zip(readings, ((BLUE, "o"), (ORANGE, "s")), strict=False))
    lines = {"any": "-", "mean": DASHED}
    for name, chosen, reading in cells:
        axes, layers = panels[names.index(name)], chosen["observed"].iloc[0]["layers"]
        for key, line in lines.items():
            values = 100 * field(chosen, "readings", reading, "others", key)
            mean, low, high = intervals(values, chosen["cluster"], (0.0, 100.0))
            colour, marker = looks[reading]
            axes.fill_between(layers, low, high, color=colour, alpha=0.2, linewidth=0)
            axes.plot(layers, mean, color=colour, marker=marker, markersize=3, linestyle=line)
        axes.set_ylim(-3, 103)
    handles = [
        Line2D(
            [],
            [],
            color=looks[reading][0],
            marker=looks[reading][1],
            linestyle=line,
            label=f"{reading}: PvC of {OTHERS[key]}",
        )
        for reading in readings
        for key, line in lines.items()
    ]
    _finish(figure, handles, "layer", "non-PvC entries of the last row, %")
    return figure


def _finish(figure: Figure, handles: list, below: str, beside: str) -> None:
    for axes in figure.axes:
        axes.set_xlabel(below)
    figure.supylabel(beside, fontsize=9)
    columns = 3 if len(handles) in (3, 5) else 2
    figure.legend(
        handles=handles,
        title="95% intervals, from ten samples on",
        loc="outside lower center",
        ncols=columns,
        handlelength=3.5,
    )
