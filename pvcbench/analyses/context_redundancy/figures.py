"""Pictures of context redundancy: what a cut costs by share and layer, in one layer or in all from one on."""

from collections.abc import Callable, Iterator

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import Normalize, SymLogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pvcbench.analyses.common import canvas, field, groups, intervals, layer_bar, layer_colours, observations, subject
from pvcbench.analyses.context_redundancy.tables import CHEAP, setting
from pvcbench.plots.style import BLACK, BLUE, DASHED, DOTTED, GREY, RED, SEQUENTIAL

NLL = f"NLL increase, nats per token (linear below {CHEAP})"
AGREEMENT = "following tokens predicted as without a cut, %"
MASS = "last token's attention that remains, %"


def figures(rows: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Effects against the share kept, as maps and by layer; cuts of all layers from one on; the newest kept instead."""
    rows = observations(rows)
    cells = list(groups(rows))
    if not cells:
        return
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
    figure, panels = canvas(rows, [name for name, _ in cells])
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
    for axes in panels[-2:]:
        axes.set_xlabel("entries that one layer keeps, % of the context (log)")
    layer_bar(figure, panels, deepest)
    figure.supylabel(label, fontsize=9)
    mean = Line2D([], [], color=BLACK, marker="o", markersize=3, label="mean over layers, 95% interval")
    figure.legend(handles=[mean], loc="outside lower center")
    return figure


def _map(rows: pd.DataFrame, cells: list, values: Callable, label: str) -> Figure:
    """Layer by share kept, means over samples: one colour scale for all groups."""
    figure, panels = canvas(rows, [name for name, _ in cells], shared=False)
    means = [intervals(values(own), own["cluster"])[0] for _, own in cells]
    known = np.concatenate([mean.ravel() for mean in means])
    if label == NLL:
        most = max(CHEAP, float(np.nanmax(np.abs(known))))
        norm, shades = SymLogNorm(CHEAP, vmin=-most, vmax=most), matplotlib.colormaps["RdBu_r"]
    else:
        norm, shades = Normalize(float(np.nanmin(known)), 100), SEQUENTIAL
    for axes, (_, own), mean in zip(panels, cells, means, strict=True):
        image = axes.imshow(mean, aspect="auto", origin="lower", norm=norm, cmap=shades, interpolation="nearest")
        layers, shares = setting(own, "layers"), setting(own, "shares")
        places = range(0, len(layers), max(1, len(layers) // 6))
        axes.set_yticks(places, [layers[place] for place in places])
        axes.set_xticks(range(len(shares)), _percent(shares))
    figure.colorbar(image, ax=panels, label=label, aspect=30, pad=0.02)
    _labels(figure, "entries that the layer keeps, % of the context", "layer cut")
    return figure


def _by_layer(rows: pd.DataFrame, cells: list) -> Figure:
    """The NLL increase by layer, a row per group and a column per share; the cut by position where it was made."""
    shares = setting(cells[0][1], "shares")
    figure = Figure(figsize=(1.6 + 1.5 * max(3, len(shares)), 1.3 + 1.9 * len(cells)), layout="constrained")
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
    kinds = {"entries with the most attention kept": (BLUE, "-"), "newest and first 4 entries kept": (RED, DASHED)}
    handles = [Line2D([], [], color=colour, linestyle=dash, label=text) for text, (colour, dash) in kinds.items()]
    figure.suptitle(subject(rows), fontsize=9)
    figure.legend(handles=handles, title="means and 95% intervals", ncols=2, loc="outside lower center")
    figure.supylabel(NLL, fontsize=9)
    return figure


def _onward(rows: pd.DataFrame, cells: list) -> Figure:
    """The NLL increase by the first layer cut: a line per share, with intervals."""
    figure, panels = canvas(rows, [name for name, _ in cells])
    shares = setting(cells[0][1], "above")
    colours = SEQUENTIAL(np.linspace(0.0, 0.88, len(shares)))
    for axes, (_, own) in zip(panels, cells, strict=True):
        found = intervals(field(own, "onward", "nll"), own["cluster"])
        for place, colour in enumerate(colours):
            _line(axes, setting(own, "layers"), [ends[:, place] for ends in found], colour, "-")
        _nll_axis(axes)
    names = [f"{text}% kept" for text in _percent(shares)]
    handles = [Line2D([], [], color=colour, label=name) for colour, name in zip(colours, names, strict=True)]
    figure.legend(handles=handles, title="95% intervals", loc="outside right upper")
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
