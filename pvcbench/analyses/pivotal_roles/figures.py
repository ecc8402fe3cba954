"""Pictures of the parts of a context: their shares by layer, what hiding each costs, and who shares them."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from pvcbench.analyses.common import by_length, canvas, field, intervals, observations
from pvcbench.analyses.pivotal_roles.tables import CONTROLLED, DISTANCES, HIDDEN, OTHERS, PARTS, increase, readings_of
from pvcbench.plots.canvas import interval_entry
from pvcbench.plots.style import BLACK, BLUE, DASHED, GREEN, GREY, ORANGE, SKY

COLOURS = {"shared": BLUE, "shared_no_sinks": SKY, "non_shared": ORANGE, "non_pvc": GREEN}
MARKERS = {"shared": "s", "shared_no_sinks": "o", "non_shared": "D", "non_pvc": "^"}
AREAS = {"shared": BLUE, "non_shared": ORANGE, "non_pvc": "#DDDDDD"}
WORDS = {
    "shared": "pivotal for the last token and most recent ones",
    "non_shared": "pivotal for the last token, not most recent ones",
}
WORDS |= {
    "shared_no_sinks": "the same without the first 4 entries (sinks)",
    "non_pvc": "not pivotal for the last token",
}
KINDS = {"mass": "the fewest with {} of the attention", "count": "the {} with most attention"}


def figures(rows: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Shares of the parts, what hiding them costs, and whose PvC non-PvC entries are; of each length."""
    for ending, own in by_length(observations(rows)):
        yield f"shares{ending}", _shares_figure(own)
        yield f"hiding{ending}", _hiding_figure(own)
        yield f"non_pvc{ending}", _others_figure(own)


def pivotal(reading: str) -> str:
    """Which entries are pivotal, in words: mass 80%, count 80%."""
    kind, share = reading.split()
    return KINDS[kind].format(share)


def _panels(rows: pd.DataFrame, handles: list, tall: float):
    """A column per reading, a line of panels per group: (figure, panels, their cells)."""
    cells = list(readings_of(rows))
    names = [f"{name}\npivotal: {pivotal(reading)}" for name, _, reading in cells]
    figure, panels = canvas(rows, names, handles, tall)
    return figure, panels, cells


def _shares_figure(rows: pd.DataFrame) -> Figure:
    handles = [Patch(color=colour, label=WORDS[part]) for part, colour in AREAS.items()]
    figure, panels, cells = _panels(rows, [*handles, interval_entry()], 2.5)
    for axes, (_, chosen, reading) in zip(panels, cells, strict=True):
        layers, below = chosen["observed"].iloc[0]["layers"], 0.0
        for number, part in enumerate(PARTS):
            values = 100 * field(chosen, "readings", reading, "entries", part) + below
            mean, low, high = intervals(values, chosen["cluster"], (0.0, 100.0))
            bottom = 0.0 if number == 0 else intervals(below, chosen["cluster"])[0]
            axes.fill_between(layers, bottom, mean, color=AREAS[part], linewidth=0)
            if number < 2:
                axes.errorbar(layers, mean, _lengths(mean, low, high), color=BLACK, linewidth=0.8, elinewidth=0.8)
            below = values
        axes.set(ylim=(0, 100), xlim=(layers[0] - 0.4, layers[-1] + 0.4))
    _labels(figure, "layer", "entries before the recent rows, %")
    return figure


def _hiding_figure(rows: pd.DataFrame) -> Figure:
    look = {"linestyle": "none", "markersize": 5}
    handles = [Line2D([], [], color=COLOURS[part], marker=MARKERS[part], label=WORDS[part], **look) for part in HIDDEN]
    handles.append(
        Line2D(
            [],
            [],
            color=BLACK,
            marker="o",
            markerfacecolor="white",
            label="open: as many others at random",
            **look,
        )
    )
    figure, panels, cells = _panels(rows, [*handles, interval_entry("95% interval, from ten samples on")], 2.4)
    for axes, (_, chosen, reading) in zip(panels, cells, strict=True):
        axes.axhline(0, color=GREY, linewidth=0.8)
        for between in np.arange(1, len(DISTANCES)) - 0.5:
            axes.axvline(between, color="#DDDDDD", linewidth=0.8)
        for number, part in enumerate(HIDDEN):
            places = np.arange(len(DISTANCES)) + 0.22 * (number - 1.5)
            look = {"color": COLOURS[part], "marker": MARKERS[part], "linestyle": "none", "markersize": 5}
            _points(axes, places - 0.04, chosen, increase(chosen, reading, part), look)
            if part in CONTROLLED:
                control = increase(chosen, reading, f"control_{part}")
                _points(axes, places + 0.05, chosen, control, look | {"markerfacecolor": "white", "markersize": 4})
        axes.set_yscale("symlog", linthresh=0.01)
        axes.set_xticks(range(len(DISTANCES)), DISTANCES)
    beside = "rise of the negative log-likelihood where a part is hidden,\nnats per token (linear below 0.01)"
    _labels(figure, "tokens after the place where the context ends", beside)
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
    readings = list(dict.fromkeys(reading for *_, reading in cells))
    looks = dict(zip(readings, ((BLUE, "o"), (ORANGE, "s")), strict=False))
    lines = {"any": "-", "mean": DASHED}
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle=line, label=f"{pivotal(reading)}: of {OTHERS[key]}")
        for reading, (colour, marker) in looks.items()
        for key, line in lines.items()
    ]
    figure, panels = canvas(rows, names, [*handles, Patch(color=GREY, alpha=0.3, label="95% interval")])
    for name, chosen, reading in cells:
        axes, layers = panels[names.index(name)], chosen["observed"].iloc[0]["layers"]
        for key, line in lines.items():
            values = 100 * field(chosen, "readings", reading, "others", key)
            mean, low, high = intervals(values, chosen["cluster"], (0.0, 100.0))
            colour, marker = looks[reading]
            axes.fill_between(layers, low, high, color=colour, alpha=0.2, linewidth=0)
            axes.plot(layers, mean, color=colour, marker=marker, markersize=3, linestyle=line)
        axes.set_ylim(-3, 103)
    _labels(figure, "layer", "of the entries not pivotal for the last token:\npivotal for others, %")
    return figure


def _labels(figure: Figure, below: str, beside: str) -> None:
    figure.supxlabel(below, fontsize=9)
    figure.supylabel(beside, fontsize=9)
