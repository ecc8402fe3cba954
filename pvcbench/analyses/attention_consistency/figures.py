"""Pictures of recent attention consistency: overlap by distance, layer and rank, beside what chance reaches."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from pvcbench.analyses import common
from pvcbench.analyses.attention_consistency.tables import tables
from pvcbench.plots.style import BLACK, BLUE, DASHED, DOTTED, GREEN, GREY, MIXED, ORANGE, PURPLE, RED, SKY

LAWS = {"power law": (RED, DASHED), "log-normal": (BLUE, "-"), "exponential": (GREEN, DOTTED)}


PAPER = {"a recent token": (0.86, DASHED), "an ensemble": (0.93, MIXED)}  # PyramidInfer, section 3.2: sets of 80%


SOURCES = (SKY, ORANGE, GREEN, PURPLE, BLUE)  # of ensembles; single tokens are black


def figures(rows: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Overlap by distance and by layer, overlap and covered attention ahead, attention by rank."""
    good = common.observations(rows)
    if len(good):
        found = tables(good)
        yield "overlap_by_distance", _distance_figure(good, found["overlap_by_distance"])
        yield "overlap_by_layer", _layer_figure(good, found["overlap_by_layer"])
        for name, label in (("overlap", "later token's set: share held"), ("covered", "later attention: share held")):
            yield f"ahead_{name}", _ahead_figure(good, found["overlap_ahead"], name, label)
        yield "attention_by_rank", _rank_figure(good, found["attention_by_rank"], found["rank_laws"])


def _panels(rows: pd.DataFrame, table: pd.DataFrame) -> tuple[Figure, list[tuple]]:
    """A panel for each reading and group of samples: the figure, and (axes, their lines of the table)."""
    names = list(table["reading"].unique())
    order = sorted(table.groupby(["reading", "samples"], sort=False), key=lambda part: names.index(part[0][0]))
    figure, panels = common.canvas(rows, [f"sets of {reading}: {samples}" for (reading, samples), _ in order])
    panels[0].set_ylim(0, 1.02)
    return figure, [(axes, part) for axes, (_, part) in zip(panels, order, strict=True)]


def _draw(axes, x: str, table: pd.DataFrame, value: str, colour: str, line="-", **style) -> None:
    """A line of means with its interval as a band, and what chance reaches as a dotted line."""
    axes.plot(table[x], table[value], color=colour, linestyle=line, **style)
    axes.fill_between(table[x], table[f"{value}_low"], table[f"{value}_high"], color=colour, alpha=0.2, linewidth=0)
    if "chance" in table:
        axes.plot(table[x], table["chance"], color=colour, linestyle=DOTTED, linewidth=1)


def _legend(figure: Figure, axes) -> None:
    axes.plot([], [], color=GREY, linestyle=DOTTED, label="chance, in each line's colour")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)


def _distance_figure(rows: pd.DataFrame, table: pd.DataFrame) -> Figure:
    figure, panels = _panels(rows, table.assign(distance=100 * table["distance"]))
    count = 1 + max(layer for layer in table["layer"] if layer != "mean")
    for axes, part in panels:
        for layer, line in part[part["layer"] != "mean"].groupby("layer"):
            axes.plot(line["distance"], line["overlap"], color=common.layer_colours(count)(layer), linewidth=0.8)
        mean = part[part["layer"] == "mean"]
        _draw(axes, "distance", mean, "overlap", BLACK, label="mean over layers, 95% interval", linewidth=2)
        axes.set(xlabel="distance from the last token, % of the context", ylabel="overlap with its set")
    _legend(figure, panels[0][0])
    common.layer_bar(figure, [axes for axes, _ in panels], count)
    return figure


def _layer_figure(rows: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """Of ensembles with the last token the largest only: the others hold much of it by themselves."""
    figure, panels = _panels(rows, table)
    for axes, part in panels:
        names = list(part["sets"].unique())
        colours = [BLACK, *(SOURCES[n % len(SOURCES)] for n in range(len(names) // 2))]
        for name, colour in [*zip(names, colours, strict=False), (names[-1], RED)]:
            line = part[part["sets"] == name]
            _draw(axes, "layer", line, "overlap", colour, MIXED if colour == RED else "-", label=name)
        for what, (value, line) in PAPER.items() if part["reading"].iloc[0].endswith(" 80%") else ():
            axes.axhline(value, color=GREY, linestyle=line, linewidth=1, label=f"PyramidInfer: {value:.0%} for {what}")
        axes.set(xlabel="layer", ylabel="overlap with the last token's set")
    _legend(figure, panels[0][0])
    return figure


def _ahead_figure(rows: pd.DataFrame, table: pd.DataFrame, value: str, label: str) -> Figure:
    figure, panels = _panels(rows, table)
    for axes, part in panels:
        for (source, line), colour in zip(part.groupby("source", sort=False), [BLACK, *SOURCES * 9], strict=False):
            name = "last token's set" if source == "last" else f"set of {source} recent tokens"
            _draw(axes, "ahead", line, value, colour, label=name, marker="o", ms=3)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(table["ahead"].unique()), sorted(table["ahead"].unique()))
        axes.set(xlabel="later token, counted from the last one of the context", ylabel=label)
    _legend(figure, panels[0][0])
    return figure


def _rank_figure(rows: pd.DataFrame, table: pd.DataFrame, laws: pd.DataFrame) -> Figure:
    """By group: all layers, and a shallow, a middle and a deep one with the mean of each family's fitted lines."""
    parts, count = [], 1 + table["layer"].max()
    for samples, part in table.groupby("samples", sort=False):
        layers = sorted(part["layer"].unique())
        chosen = [layers[int(share * (len(layers) - 1))] for share in (0, 0.5, 1)]
        parts += [(f"{samples}: all layers", part, None)]
        for n in dict.fromkeys(chosen):
            fitted = laws[(laws["samples"] == samples) & (laws["layer"] == n)]
            parts.append((f"{samples}: layer {n}", part[part["layer"] == n], fitted))
    figure, panels = common.canvas(rows, [name for name, *_ in parts])
    for axes, (_, part, fitted) in zip(panels, parts, strict=True):
        if fitted is None:
            for layer, line in part.groupby("layer"):
                axes.plot(line["rank"], line["attention"], color=common.layer_colours(count)(layer), linewidth=0.8)
        else:
            _draw(axes, "rank", part, "attention", BLACK, "", marker="o", ms=2.5, label="measured, 95% interval")
            ranks = part["rank"]  # the last one is the number of entries
            normal = stats.norm.ppf(1 - (ranks - 0.5) / ranks.max())
            for law, x in zip(fitted.itertuples(), (np.log(ranks), normal, ranks), strict=True):
                line, (colour, dashes) = np.exp(law.intercept + law.slope * x), LAWS[law.family]
                axes.plot(ranks, line, color=colour, linestyle=dashes, label=f"{law.family}, R² {law.r2:.3f}")
            axes.legend(fontsize=7, loc="lower left")
        axes.set(xscale="log", yscale="log", xlabel="rank of the entry", ylabel="attention of the last token")
        axes.set_ylim(table["attention"].min() / 3, 3)
    common.layer_bar(figure, panels, count)
    return figure
