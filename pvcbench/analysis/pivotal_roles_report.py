"""What the parts of a context are for: their shares by layer, what hiding each costs, and the test of the claim."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from pvcbench.analysis.common import SHARES, canvas, field, groups, intervals, observations, with_ends
from pvcbench.intervals import Bounds
from pvcbench.looks import BLACK, BLUE, DASHED, GREEN, GREY, ORANGE, SKY

PARTS = {"shared": "shared PvC", "non_shared": "non-shared PvC", "non_pvc": "non-PvC"}
HIDDEN = {"shared": "shared PvC", "shared_no_sinks": "shared PvC, no sinks"} | PARTS
CONTROLLED = ("shared_no_sinks", "non_shared", "non_pvc")
COLOURS = {"shared": BLUE, "shared_no_sinks": SKY, "non_shared": ORANGE, "non_pvc": GREEN}
AREAS = (BLUE, ORANGE, "#DDDDDD")
MARKERS = {"shared": "s", "shared_no_sinks": "o", "non_shared": "D", "non_pvc": "^"}
OTHERS = {"any": "at least one other row", "mean": "the other rows, mean share"}
SHARE, HIDING = "entries: {}", "NLL: {} hidden"  # shares of entries; increases in nats per token
DISTANCES = ("next token", "tokens 2-8", "tokens 9 on")
COLUMNS = ("samples", "reading", "quantity", "value", *DISTANCES, "verdict")


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The summary, shares by layer, and what hiding costs by variant and distance.

    In the summary, entries and non-PvC are shares (means over layers), NLL are increases in nats per token, `- control`
    less those of hiding as many entries at random, and what follows is differences of these.
    """
    summary, shares, hiding = [], [], []
    for name, chosen, reading in _cells(rows):
        head = {"samples": name, "reading": reading}
        summary += [head | line for line in _summary(chosen, reading)]
        shares += [head | line for line in _shares(chosen, reading)]
        hiding += [head | line for line in _hiding(chosen, reading)]
    frame = pd.DataFrame(summary, columns=COLUMNS).fillna("")
    return {"summary": frame, "shares_by_layer": pd.DataFrame(shares), "hiding": pd.DataFrame(hiding)}


def figures(rows: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Shares of the parts, what hiding them costs, and whose PvC non-PvC entries are."""
    if any(True for _ in _cells(rows)):
        yield "shares", _shares_figure(rows)
        yield "hiding", _hiding_figure(rows)
        yield "non_pvc", _others_figure(rows)


def _cells(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame, str]]:
    """Every group of samples by every reading of the top 80%."""
    for name, chosen in groups(observations(rows)):
        for reading in chosen["observed"].iloc[0]["readings"]:
            yield name, chosen, reading


def _increase(rows: pd.DataFrame, reading: str, variant: str) -> np.ndarray:
    """By how much hiding raises the NLL, nats per token: [samples, distances]."""
    return field(rows, "readings", reading, "increase", variant)


def _excess(rows: pd.DataFrame, reading: str, variant: str) -> np.ndarray:
    """The same above what hiding as many entries at random costs."""
    return _increase(rows, reading, variant) - _increase(rows, reading, f"control_{variant}")


def _summary(rows: pd.DataFrame, reading: str) -> Iterator[dict]:
    clusters = rows["cluster"]

    def shown(values: np.ndarray, bounds: Bounds = None) -> str:
        return with_ends(*(float(end) for end in intervals(values, clusters, bounds)))

    for part, name in PARTS.items():
        values = field(rows, "readings", reading, "entries", part).mean(1)
        yield {"quantity": SHARE.format(name), "value": shown(values, SHARES)}
    for key, name in OTHERS.items():
        values = np.nanmean(field(rows, "readings", reading, "others", key), axis=1)
        yield {"quantity": f"non-PvC that are PvC of {name}", "value": shown(values, SHARES)}
    for variant, name in HIDDEN.items():
        less = variant in CONTROLLED
        values = _excess(rows, reading, variant) if less else _increase(rows, reading, variant)
        quantity = HIDING.format(name) + (" - control" if less else "")
        yield {"quantity": quantity} | {at: shown(values[:, place]) for place, at in enumerate(DISTANCES)}
    for quantity, values in _claims(rows, reading).items():
        ends = [float(end) for end in intervals(values, clusters)]
        yield {"quantity": quantity, "value": with_ends(*ends), "verdict": verdict(*ends)}


def _claims(rows: pd.DataFrame, reading: str) -> dict[str, np.ndarray]:
    """What the paper says would make each positive, by sample: next token minus tokens 9 on, both less the control."""
    nearer = {
        part: _excess(rows, reading, part) @ np.array([1.0, 0.0, 0.0]) for part in ("shared_no_sinks", "non_shared")
    }
    further = {part: _excess(rows, reading, part)[:, 2] for part in nearer}
    own, shared = (nearer[part] - further[part] for part in ("non_shared", "shared_no_sinks"))
    return {
        "non-shared: next token - tokens 9 on": own,
        "shared, no sinks: tokens 9 on - next token": -shared,
        "claim: non-shared nearer than shared": own - shared,
    }


def verdict(mean: float, low: float, high: float) -> str:
    """What an interval says of a claim that the mean is above 0; nothing without an interval."""
    if np.isnan(low):
        return ""
    return "supported" if low > 0 else "contradicted" if high < 0 else "not told apart"


def _shares(rows: pd.DataFrame, reading: str) -> Iterator[dict]:
    """By layer: shares of entries and of the last row's attention in each part, and whose PvC non-PvC entries are."""
    layers = rows["observed"].iloc[0]["layers"]
    names = [(quantity, part) for quantity in ("entries", "attention") for part in PARTS]
    for quantity, part in [*names, *(("others", key) for key in OTHERS)]:
        found = intervals(field(rows, "readings", reading, quantity, part), rows["cluster"], SHARES)
        for layer, mean, low, high in zip(layers, *found, strict=True):
            yield {"layer": layer, "quantity": quantity, "of": part, "mean": mean, "low": low, "high": high}


def _hiding(rows: pd.DataFrame, reading: str) -> Iterator[dict]:
    """By variant and distance: the share of entries hidden, the increase of the NLL, the predictions that stay."""
    controls = [f"control_{part}" for part in CONTROLLED]
    for variant in [*HIDDEN, *controls]:
        hidden = field(rows, "readings", reading, "hidden", variant)
        numbers = {"nll_increase": _increase(rows, reading, variant)}
        numbers["agreement"] = field(rows, "readings", reading, "agreement", variant)
        if variant in CONTROLLED:
            numbers["increase_less_control"] = _excess(rows, reading, variant)
        clusters, within = rows["cluster"], {"agreement": SHARES}
        ends = {name: intervals(values, clusters, within.get(name)) for name, values in numbers.items()}
        for place, distance in enumerate(DISTANCES):
            line = {"hidden": variant, "hidden_share": float(hidden.mean()), "distance": distance}
            for name, found in ends.items():
                line |= {
                    f"{name}{end}": values[place] for end, values in zip(("", "_low", "_high"), found, strict=True)
                }
            yield line


def _panels(rows: pd.DataFrame, **how):
    """A panel per group and reading: (figure, panels, their cells)."""
    cells = list(_cells(rows))
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
            _points(axes, places - 0.04, chosen, _increase(chosen, reading, part), look)
            if part in CONTROLLED:
                control = _increase(chosen, reading, f"control_{part}")
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
    cells = list(_cells(rows))
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
