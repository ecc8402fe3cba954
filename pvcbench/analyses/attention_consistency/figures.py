"""Pictures of recent attention consistency: overlap by distance, layer and rank, beside what chance reaches."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy import stats

from pvcbench.analyses import common
from pvcbench.analyses.attention_consistency.tables import tables
from pvcbench.plots.canvas import beside, interval_entry
from pvcbench.plots.style import BLACK, BLUE, DASHED, DOTTED, GREEN, GREY, MIXED, ORANGE, PURPLE, RED, SKY

LAWS = {"power law": (RED, DASHED), "log-normal": (BLUE, "-"), "exponential": (GREEN, DOTTED)}
PAPER = {"a recent token": (0.86, DASHED), "an ensemble": (0.93, MIXED)}  # PyramidInfer, section 3.2: sets of 80%
SOURCES = ((BLACK, "o", "-"), (SKY, "s", DASHED), (ORANGE, "D", MIXED), (GREEN, "^", "-"), (PURPLE, "v", DASHED))
KINDS = {"mass": "the fewest entries with {} of the attention", "count": "the {} of the entries with most attention"}
CHANCE = Patch(color="#D5D5D5", label="a random set of the same size")


def figures(rows: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Overlap by distance and by layer, overlap and covered attention ahead, attention by rank; of each length."""
    for ending, good in common.by_length(common.observations(rows)):
        yield from ((name + ending, figure) for name, figure in _of_length(good))


def _of_length(good: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    found = tables(good)
    yield "overlap_by_distance", _distance_figure(good, found["overlap_by_distance"])
    yield "overlap_by_layer", _layer_figure(good, found["overlap_by_layer"])
    for name, label in (("overlap", "share of a later token's set that is held"), ("covered", "attention held")):
        yield f"ahead_{name}", _ahead_figure(good, found["overlap_ahead"], name, label)
    yield "attention_by_rank", _rank_figure(good, found["attention_by_rank"], found["rank_laws"])


def sets(reading: str) -> str:
    """Which entries a set holds, in words: mass 80%, count 20%."""
    kind, share = reading.split()
    return KINDS[kind].format(share)


def _panels(rows: pd.DataFrame, table: pd.DataFrame, handles: list) -> tuple[Figure, list[tuple]]:
    """A line of panels for each reading, a column for each group: the figure, and (axes, their lines of the table)."""
    readings, groups = list(table["reading"].unique()), list(table["samples"].unique())
    titles = [[f"{group}\n" * (not line) + sets(name) for group in groups] for line, name in enumerate(readings)]
    figure, panels = common.grid(rows, titles, handles, 2.0)
    found = []
    for reading, line in zip(readings, panels, strict=True):
        for group, axes in zip(groups, line, strict=True):
            found.append((axes, table[(table["reading"] == reading) & (table["samples"] == group)]))
    return figure, found


def _draw(axes, x: str, table: pd.DataFrame, value: str, look: tuple, where=None, **style) -> None:
    """A line of means with their intervals as bars; `where` moves it beside others."""
    colour, marker, line = look
    moved = {} if where is None else {"transform": where}
    ends = table[f"{value}_low"], table[f"{value}_high"]
    axes.vlines(table[x], *ends, color=colour, linewidth=0.9, alpha=0.7, **moved)
    axes.plot(table[x], table[value], color=colour, linestyle=line, marker=marker, ms=3, lw=1, **moved, **style)


def _chance(axes, x: str, table: pd.DataFrame) -> None:
    """What random sets of the same sizes reach, from the least to the most of all lines."""
    ends = table.groupby(x)["chance"].agg(["min", "max"])
    middle, half = ends.mean(axis=1), np.maximum(0.004, (ends["max"] - ends["min"]) / 2)  # never too thin to be seen
    axes.fill_between(ends.index, middle - half, middle + half, color=CHANCE.get_facecolor(), linewidth=0, zorder=0)


def _from_chance(panels: list[tuple]) -> None:
    """Every y axis from 0, or from where a random set is where that is high already, to 1."""
    for axes, part in panels:
        least = part["chance"].min()
        axes.set_ylim(least - 0.04 if least > 0.5 else -0.02, 1.03)


def _lines(names: dict[str, tuple]) -> list[Line2D]:
    return [Line2D([], [], color=c, marker=m, linestyle=line, ms=4, label=name) for name, (c, m, line) in names.items()]


def _distance_figure(rows: pd.DataFrame, table: pd.DataFrame) -> Figure:
    mean = Line2D([], [], color=BLACK, linewidth=2, label="mean over layers, 95% interval")
    figure, panels = _panels(rows, table.assign(distance=100 * table["distance"]), [mean, CHANCE])
    count = 1 + max(layer for layer in table["layer"] if layer != "mean")
    for axes, part in panels:
        for layer, line in part[part["layer"] != "mean"].groupby("layer"):
            axes.plot(line["distance"], line["overlap"], color=common.layer_colours(count)(layer), linewidth=0.8)
        own = part[part["layer"] == "mean"]
        axes.fill_between(own["distance"], own["overlap_low"], own["overlap_high"], color=BLACK, alpha=0.2, linewidth=0)
        axes.plot(own["distance"], own["overlap"], color=BLACK, linewidth=2)
        _chance(axes, "distance", own)
    figure.supxlabel("distance from the last token, % of the context", fontsize=9)
    figure.supylabel("overlap with the last token's set", fontsize=9)
    common.layer_bar(figure, [axes for axes, _ in panels], count)
    return figure


def _layer_figure(rows: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """One recent token, the smallest ensemble and the largest: those between lie between, and the table has them."""
    names = list(table["sets"].unique())
    before = [name for name in names[1:] if "with" not in name]
    looks = (BLACK, "", "-"), (BLUE, "", DASHED), (ORANGE, "", "-")  # apart in grey print too
    chosen = dict(zip([names[0], *dict.fromkeys(before[:: max(1, len(before) - 1)])], looks, strict=False))
    paper = {f"PyramidInfer: {value:.0%} for {what}": (value, line) for what, (value, line) in PAPER.items()}
    theirs = [Line2D([], [], color=GREY, linestyle=line, linewidth=1, label=text) for text, (_, line) in paper.items()]
    figure, panels = _panels(rows, table, [*_lines(chosen), interval_entry(), CHANCE, *theirs])
    for axes, part in panels:
        for number, (name, look) in enumerate(chosen.items()):
            where = beside(axes, number, len(chosen), 2.2)
            _draw(axes, "layer", part[part["sets"] == name], "overlap", look, where, label=name)
        _chance(axes, "layer", part[part["sets"].isin(chosen)])
        for text, (value, line) in paper.items() if part["reading"].iloc[0].endswith(" 80%") else ():
            axes.axhline(value, color=GREY, linestyle=line, linewidth=1, label=text)
    _from_chance(panels)
    figure.supxlabel("layer", fontsize=9)
    figure.supylabel("overlap with the last token's set", fontsize=9)
    return figure


def _ahead_figure(rows: pd.DataFrame, table: pd.DataFrame, value: str, label: str) -> Figure:
    names = {source: f"set of {source} recent tokens" for source in table["source"].unique()}
    names |= {"last": "the last token's set"} if "last" in names else {}
    looks = dict(zip(names, SOURCES * 9, strict=False))
    random = [] if value == "covered" else [CHANCE]
    handles = [*_lines({name: looks[source] for source, name in names.items()}), interval_entry(), *random]
    figure, panels = _panels(rows, table, handles)
    for axes, part in panels:
        for number, (source, look) in enumerate(looks.items()):
            where = beside(axes, number, len(looks), 3.2)
            _draw(axes, "ahead", part[part["source"] == source], value, look, where, label=names[source])
        if random:
            _chance(axes, "ahead", part)
        own = sorted(part["ahead"].unique())
        axes.set_xscale("log", base=2)
        axes.set_xticks(own, own)
        axes.set_xlim(own[0] / 1.3, own[-1] * 1.3)
    _from_chance(panels)
    figure.supxlabel("which token after the context", fontsize=9)
    figure.supylabel(label, fontsize=9)
    return figure


def _rank_figure(rows: pd.DataFrame, table: pd.DataFrame, laws: pd.DataFrame) -> Figure:
    """A column for each group: all layers, and a shallow, a middle and a deep one with each family's fitted line."""
    groups, count = list(table["samples"].unique()), 1 + table["layer"].max()
    layers = sorted(table["layer"].unique())
    chosen = list(dict.fromkeys(layers[int(share * (len(layers) - 1))] for share in (0, 0.5, 1)))
    titles = [[f"{group}: all layers" for group in groups], *([f"layer {n}" for _ in groups] for n in chosen)]
    fits = [Line2D([], [], color=colour, linestyle=line, label=law) for law, (colour, line) in LAWS.items()]
    dot = Line2D([], [], color=BLACK, marker="o", ms=3, linestyle="none", label="measured (grey: 95% interval)")
    figure, panels = common.grid(rows, titles, [dot, *fits], 1.75)
    for column, group in zip(panels.T, groups, strict=True):
        own = table[table["samples"] == group]
        for layer, line in own.groupby("layer"):
            column[0].plot(line["rank"], line["attention"], color=common.layer_colours(count)(layer), linewidth=0.8)
        for axes, n in zip(column[1:], chosen, strict=True):
            _fitted(axes, own[own["layer"] == n], laws[(laws["samples"] == group) & (laws["layer"] == n)])
        for axes in column:
            axes.set(xscale="log", yscale="log", ylim=(table["attention"].min() / 3, 3))
    figure.supxlabel("rank of the entry by the attention it gets (1: the most)", fontsize=9)
    figure.supylabel("attention of the last token on the entry (all: 1)", fontsize=9)
    common.layer_bar(figure, list(panels[0]), count)
    return figure


def _fitted(axes, part: pd.DataFrame, fitted: pd.DataFrame) -> None:
    """What one layer's attention was, and the means of each family's fitted lines with their R²."""
    ranks = part["rank"]  # the last one is the number of entries
    axes.fill_between(ranks, part["attention_low"], part["attention_high"], color=BLACK, alpha=0.2, linewidth=0)
    axes.plot(ranks, part["attention"], "o", color=BLACK, markersize=2.5)
    normal = stats.norm.ppf(1 - (ranks - 0.5) / ranks.max())
    for place, (law, x) in enumerate(zip(fitted.itertuples(), (np.log(ranks), normal, ranks), strict=True)):
        line, (colour, dashes) = np.exp(law.intercept + law.slope * x), LAWS[law.family]
        axes.plot(ranks, line, color=colour, linestyle=dashes, linewidth=1.2)
        at = {"transform": axes.transAxes, "fontsize": 7, "color": colour}
        axes.text(0.03, 0.25 - 0.11 * place, f"{law.family}: R² {law.r2:.2f}", **at)
