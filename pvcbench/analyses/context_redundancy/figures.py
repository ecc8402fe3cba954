"""Pictures of context redundancy: what a cut costs by share and layer, in one layer or in all from one on."""

from collections.abc import Callable, Iterator

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import Normalize, SymLogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from pvcbench.analyses.common import (
    by_length,
    canvas,
    field,
    grid,
    groups,
    intervals,
    layer_bar,
    layer_colours,
    observations,
    subject,
)
from pvcbench.analyses.context_redundancy.tables import CHEAP, setting
from pvcbench.plots.canvas import WIDTH, head
from pvcbench.plots.style import BLACK, BLUE, DASHED, DOTTED, GREY, RED, SEQUENTIAL

NLL = f"rise of the negative log-likelihood,\nnats per token (linear below {CHEAP})"
AGREEMENT = "following tokens predicted as without a cut, %"
BAND = Patch(color=GREY, alpha=0.3, label="95% interval")
SIGNS = {"+": "worse, the 95% interval is above 0", "_": "better, it is below 0"}
DARK = 0.08  # changes that the map draws so dark that black cannot be seen on them
MASS = "last token's attention that remains, %"


def figures(rows: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Effects against the share kept, as maps and by layer; cuts of all layers from one on; the newest kept instead."""
    for ending, own in by_length(observations(rows)):
        yield from ((name + ending, figure) for name, figure in _of_length(own, list(groups(own))))


def _of_length(rows: pd.DataFrame, cells: list) -> Iterator[tuple[str, Figure]]:
    yield "nll_by_share", _by_share(rows, cells, lambda own: field(own, "alone", "nll"), NLL)
    yield "agreement_by_share", _by_share(rows, cells, lambda own: 100 * field(own, "alone", "agreement"), AGREEMENT)
    yield "nll_map", _map(rows, cells, lambda own: field(own, "alone", "nll"), NLL)
    yield "agreement_map", _map(rows, cells, lambda own: 100 * field(own, "alone", "agreement"), AGREEMENT)
    yield "attention_map", _map(rows, cells, lambda own: 100 * field(own, "alone", "mass"), MASS)
    yield "nll_by_layer", _by_layer(rows, cells)
    if all(setting(own, "above") for _, own in cells):
        yield "nll_onward", _onward(rows, cells)


def _percent(shares: list[float]) -> list[str]:
    return [f"{100 * share:g}" for share in shares]


def _by_share(rows: pd.DataFrame, cells: list, values: Callable, label: str) -> Figure:
    """Against the share kept: a line per layer, and the mean over layers with its interval."""
    mean = Line2D([], [], color=BLACK, marker="o", markersize=3, label="mean over layers, 95% interval")
    figure, panels = canvas(rows, [name for name, _ in cells], [mean])
    deepest = 1 + max(max(setting(own, "layers")) for _, own in cells)
    colours = layer_colours(deepest)
    for axes, (_, own) in zip(panels, cells, strict=True):
        shares, found = [100 * share for share in setting(own, "shares")], values(own)
        for layer, line in zip(setting(own, "layers"), intervals(found, own["cluster"])[0], strict=True):
            axes.plot(shares, line, color=colours(layer), linewidth=0.8)
        mean, low, high = intervals(found.mean(1), own["cluster"])
        axes.errorbar(
            shares, mean, _lengths(mean, low, high), color=BLACK, marker="o", markersize=3, capsize=2, zorder=3
        )
        axes.set_xscale("log")
        axes.set_xticks(shares, _percent(setting(own, "shares")))
        axes.minorticks_off()
        if label == NLL:
            _nll_axis(axes)
    figure.supxlabel("entries that one layer keeps, % of the context (log)", fontsize=9)
    layer_bar(figure, panels, deepest)
    figure.supylabel(label, fontsize=9)
    return figure


def _map(rows: pd.DataFrame, cells: list, values: Callable, label: str) -> Figure:
    """Layer by share kept, means over samples: one colour scale for all groups; signs stand for colours in grey print.

    Of changes, a plus or minus marks squares whose interval leaves out 0, by its direction.
    """
    marks = [Line2D([], [], color=BLACK, marker=sign, linestyle="none", label=text) for sign, text in SIGNS.items()]
    figure, panels = canvas(rows, [name for name, _ in cells], marks if label == NLL else [], 3.6, shared=False)
    found = [intervals(values(own), own["cluster"]) for _, own in cells]
    known = np.concatenate([mean.ravel() for mean, *_ in found])
    if label == NLL:
        most = max(CHEAP, float(np.nanmax(np.abs(known))))
        norm, shades = SymLogNorm(CHEAP, vmin=-most, vmax=most), matplotlib.colormaps["RdBu_r"]
    else:
        norm, shades = Normalize(float(np.nanmin(known)), 100), SEQUENTIAL
    for axes, (_, own), (mean, low, high) in zip(panels, cells, found, strict=True):
        image = axes.imshow(mean, aspect="auto", origin="lower", norm=norm, cmap=shades, interpolation="nearest")
        layers, shares = setting(own, "layers"), setting(own, "shares")
        places = range(0, len(layers), max(1, len(layers) // 6))
        axes.set_yticks(places, [layers[place] for place in places])
        axes.set_xticks(range(len(shares)), _percent(shares))
        for sign, chosen in zip(SIGNS, (low > 0, high < 0), strict=True) if label == NLL else ():
            y, x = np.nonzero(chosen)
            ink = ["white" if dark else "black" for dark in np.abs(mean[y, x]) > DARK]
            axes.scatter(x, y, marker=sign, s=16, c=ink, linewidths=1)
    figure.colorbar(image, ax=panels, label=label, aspect=30, pad=0.02)
    _labels(figure, "entries that the layer keeps, % of the context", "layer cut")
    return figure


def _by_layer(rows: pd.DataFrame, cells: list) -> Figure:
    """The NLL increase by layer, a row per group and a column per share; the cut by position where it was made."""
    shares = setting(cells[0][1], "shares")
    kinds = {"entries with the most attention kept": (BLUE, "-"), "newest and first 4 entries kept": (RED, DASHED)}
    handles = [Line2D([], [], color=colour, linestyle=dash, label=text) for text, (colour, dash) in kinds.items()]
    figure = Figure(figsize=(WIDTH, 1.3 + 1.9 * len(cells)), layout="constrained")
    head(figure, subject(rows), [*handles, BAND])
    panels = figure.subplots(len(cells), len(shares), squeeze=False, sharex=True, sharey=True)
    for line, (name, own) in zip(panels, cells, strict=True):
        line[0].set_ylabel(name.replace(", ", "\n"))
        above, layers = setting(own, "above"), setting(own, "layers")
        alone, recent = (intervals(field(own, kind, "nll"), own["cluster"]) for kind in ("alone", "recent"))
        for place, (share, axes) in enumerate(zip(shares, line, strict=True)):
            _line(axes, layers, [ends[:, place] for ends in alone], BLUE, "-")
            if share in above:
                _line(axes, layers, [ends[:, above.index(share)] for ends in recent], RED, DASHED)
            _nll_axis(axes)
    for text, top, bottom in zip(_percent(shares), panels[0], panels[-1], strict=True):
        top.set_title(f"{text}% kept")
        bottom.set_xlabel("layer cut")
    figure.supylabel(NLL, fontsize=9)
    return figure


def _onward(rows: pd.DataFrame, cells: list) -> Figure:
    """The NLL increase by the first layer cut: a line of panels per share, so that no band lies over another."""
    shares = setting(cells[0][1], "above")
    titles = [[f"{name}: {text}% kept" for name, _ in cells] for text in _percent(shares)]
    mean = Line2D([], [], color=BLUE, linewidth=1.2, label="mean")
    figure, panels = grid(rows, titles, [mean, BAND], 2.0)
    for column, (_, own) in zip(panels.T, cells, strict=True):
        found = intervals(field(own, "onward", "nll"), own["cluster"])
        for place, axes in enumerate(column):
            _line(axes, setting(own, "layers"), [ends[:, place] for ends in found], BLUE, "-")
            _nll_axis(axes)
    _labels(figure, "first layer cut, with all deeper ones", NLL)
    return figure


def _line(axes, layers: list[int], ends: list[np.ndarray], colour, dash) -> None:
    """Means by layer over the band of their intervals."""
    mean, low, high = ends
    axes.fill_between(layers, low, high, color=colour, alpha=0.25, linewidth=0)
    axes.plot(layers, mean, color=colour, linestyle=dash, linewidth=1.0)


def _nll_axis(axes) -> None:
    """Logarithmic on both sides of 0, with lines at 0 and at CHEAP."""
    axes.set_yscale("symlog", linthresh=CHEAP)
    axes.axhline(0, color=GREY, linewidth=0.8, zorder=0)
    axes.axhline(CHEAP, color=GREY, linewidth=0.8, linestyle=DOTTED, zorder=0)


def _labels(figure: Figure, below: str, beside: str) -> None:
    figure.supxlabel(below, fontsize=9)
    figure.supylabel(beside, fontsize=9)


def _lengths(mean: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Error bars of intervals; none where there is no interval."""
    return np.nan_to_num(np.maximum(0.0, [mean - low, high - mean]))
