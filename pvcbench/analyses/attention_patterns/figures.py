"""Figures of attention patterns: maps, entropy by layer, example heads, and how well verdicts predict eviction."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from pvcbench.analyses.attention_patterns import tables
from pvcbench.analyses.attention_patterns.rules import COMPRESSIBLE, PATTERNS
from pvcbench.analyses.common import (
    by_length,
    canvas,
    field,
    groups,
    intervals,
    layer_bar,
    layer_colours,
    observations,
    subject,
)
from pvcbench.plots.canvas import WIDTH, head, interval_entry
from pvcbench.plots.style import BLACK, BLUE, DASHED, GREEN, GREY, PURPLE, RED, asked, looks, ordered

SHADES = ("#F4DC8A", "#E08A3C", BLACK, "#86C9EE", "#5E2A84", "#2F7FB8")  # each as light as no other: grey print too
COLOURS = dict(zip(PATTERNS, SHADES, strict=True))
OUTCOMES = {"output error, last row": "output error at the last token"}
OUTCOMES |= {"output error, answer row": "output error at the tokens that predict the answer"}
OUTCOMES |= {"needle survival": "share of the needle's tokens kept"}
VERDICT = {True: "compressible", False: "not compressible"}
INK = {name: "black" if name in ("uniform", "recency", "V-shaped") else "white" for name in PATTERNS}


def figures(rows: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Every picture that these rows allow, by name; of each length."""
    for ending, own in by_length(rows):
        yield from ((name + ending, figure) for name, figure in _of_length(own))


def _of_length(rows: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    seen = observations(rows)
    if seen.empty:
        return
    yield "pattern_map", pattern_map(seen)
    yield "pattern_examples", pattern_examples(seen)
    yield "entropy_by_layer", entropy_by_layer(seen)
    yield "top_mass", top_mass(seen)
    if (rows["method"].notna() & rows["error"].isna()).any():
        yield "error_by_pattern", error_by_pattern(rows)
    lines = pd.DataFrame(tables.verdict_lines(rows))
    if len(lines) and lines["rho"].notna().any():
        yield "verdict_predicts", verdict_predicts(rows, lines)


def pattern_map(seen: pd.DataFrame) -> Figure:
    """The most frequent pattern of each head over the samples, at the last row; a dot where under half agree."""
    marks = [Patch(color=COLOURS[name], label=name) for name in PATTERNS]
    dot = {"marker": "o", "markersize": 3, "linestyle": "none", "color": BLACK}
    marks.append(Line2D([], [], label="most frequent, but in under half of the samples", **dot))
    panels = dict(groups(seen))
    figure, axes = canvas(seen, list(panels), marks, 4.0)
    scale = ListedColormap([COLOURS[name] for name in PATTERNS])
    for own, ax in zip(panels.values(), axes, strict=True):
        counts = np.stack([(tables.patterns_of(own) == number).mean(0) for number in range(len(PATTERNS))])
        mode, share = counts.argmax(0), counts.max(0)
        ax.imshow(mode, cmap=scale, norm=BoundaryNorm(np.arange(7) - 0.5, 6), aspect="auto", interpolation="nearest")
        y, x = np.nonzero(share < 0.5)
        ax.scatter(x, y, s=7, c=[INK[PATTERNS[mode[place]]] for place in zip(y, x, strict=True)], linewidths=0)
        ax.set(xticks=range(mode.shape[1]))
        _layer_ticks(ax, own)
    figure.supxlabel("query head", fontsize=9)
    figure.supylabel("layer", fontsize=9)
    return figure


def _layer_ticks(ax, own: pd.DataFrame) -> None:
    """Every fifth observed layer on the y axis."""
    layers = own["observed"].iloc[0]["layers"]
    places = range(0, len(layers), 5)
    ax.set_yticks(places, [layers[place] for place in places])


def pattern_examples(seen: pd.DataFrame) -> Figure:
    """The clearest head of each pattern over the longest samples: its mass against position."""
    tokens = field(seen, "tokens")
    seen = seen[tokens == tokens.max()]
    figure = Figure(figsize=(WIDTH, 4.8), layout="constrained")
    panels = figure.subplots(2, 3, sharex=True, sharey=True).flat
    step, longest = 1, tokens.max()
    for number, (name, ax) in enumerate(zip(PATTERNS, panels, strict=True)):
        found = [e for row in seen.itertuples() if (e := row.observed["examples"].get(name))]
        ax.set(yscale="log", ylim=(1e-3, 150), xlim=(-0.02 * longest, 1.02 * longest))
        if not found:
            ax.set_title(f"{name}: no head", color="#555555")
            continue
        example = max(found, key=lambda one: one["clearness"])
        mass = 100 * np.array(example["mass"])
        step = longest / len(mass)
        places = (np.arange(len(mass)) + 0.5) * step
        ax.vlines(places, 1e-4, np.maximum(mass, 1e-4), color=BLUE, linewidth=1)
        what = f"first {example['sink']:.1%}, recent {example['recent']:.1%}, middle {example['middle']:.1%}"
        text = f"{name}: {VERDICT[bool(COMPRESSIBLE[number])]}\nlayer {example['layer']}, head {example['head']}, "
        ax.set_title(f"{text}entropy {example['entropy']:.2f} nats\n{what}", fontsize=7.5)
    head(figure, f"{subject(seen)}: the clearest head of each pattern")
    figure.supxlabel("position in the prompt, tokens", fontsize=9)
    figure.supylabel(f"attention of the last token,\n% on each {step:.0f} tokens (log)", fontsize=9)
    return figure


def entropy_by_layer(seen: pd.DataFrame) -> Figure:
    """Mean entropy of a layer's heads, as it is and weighted by value norms, with the largest there can be."""
    panels, kinds = dict(groups(seen)), {"attention": (BLUE, "-"), "attention x value norm": (RED, DASHED)}
    handles = [Line2D([], [], color=colour, linestyle=line, marker=".", label=n) for n, (colour, line) in kinds.items()]
    handles += [Line2D([], [], color=BLACK, linewidth=1, linestyle=DASHED, label="uniform over all n entries: ln n")]
    figure, axes = canvas(seen, list(panels), [*handles, Patch(color=GREY, alpha=0.3, label="95% interval")], 2.7)
    for own, ax in zip(panels.values(), axes, strict=True):
        layers = own["observed"].iloc[0]["layers"]
        for weighting, colour, line in (("attention", BLUE, "-"), ("values", RED, DASHED)):
            entropy = field(own, "rows", "last", weighting, "entropy").mean(2)
            mean, low, high = intervals(entropy, own["cluster"])
            text = "attention" if weighting == "attention" else "attention x value norm"
            ax.plot(layers, mean, color=colour, linestyle=line, marker=".", label=text)
            ax.fill_between(layers, low, high, color=colour, alpha=0.2, linewidth=0)
        ax.axhline(
            np.log(field(own, "tokens").max()), color=BLACK, linewidth=1, linestyle=DASHED, label="uniform: ln n"
        )
        right = ax.secondary_yaxis("right", functions=(np.exp, lambda x: np.log(np.maximum(x, 1e-9))))
        right.set_yticks([1, 10, 100, 1000], ["1", "10", "100", "1,000"])
        right.set_ylabel("as many tokens (e to the entropy)", fontsize=8)
    figure.supxlabel("layer", fontsize=9)
    figure.supylabel("entropy of the last token's attention, nats\n(mean over heads)", fontsize=9)
    return figure


def top_mass(seen: pd.DataFrame) -> Figure:
    """The mass of the heaviest K entries against K, a line per layer, mean over heads and samples."""
    panels, top = dict(groups(seen)), seen["observed"].iloc[0]["top"]
    figure, axes = canvas(seen, list(panels))
    for own, ax in zip(panels.values(), axes, strict=True):
        mass = 100 * field(own, "rows", "last", "attention", "top").mean((0, 2))
        for colour, line in zip(layer_colours(len(mass)).colors, mass, strict=True):
            ax.plot(top, line, color=colour, linewidth=1)
        ax.set_xscale("log", base=2)
        ax.set(ylim=(0, 102))
    figure.supxlabel("number of entries, those with the most attention first", fontsize=9)
    figure.supylabel("attention on them, %\n(mean over a layer's heads)", fontsize=9)
    layer_bar(figure, axes, len(mass))
    return figure


def error_by_pattern(rows: pd.DataFrame) -> Figure:
    """The output error that each method leaves at its smallest and largest budget, by the head's pattern."""
    good = rows[rows["error"].isna()]
    panels = {name: own for name, own in groups(good) if own["method"].notna().any()}
    style, names = looks(good["method"].dropna().unique()), ordered(good["method"].dropna())
    known = good[good["method"].notna()]
    cells = [(name, budget) for name in names for budget in dict.fromkeys(known[known["method"] == name]["budget"])]
    faces = {cell: style[cell[0]][0] if not number % 2 else "white" for number, cell in enumerate(cells)}
    same = {"linestyle": "none", "markersize": 5}
    handles = [
        Line2D([], [], color=style[m][0], marker=style[m][1], mfc=faces[m, b], label=f"{m} {asked(b)}", **same)
        for m, b in cells
    ]
    figure, axes = canvas(rows, list(panels), [*handles, interval_entry()], 3.0)
    for own, ax in zip(panels.values(), axes, strict=True):
        for number, cell in enumerate(cells):
            where = np.arange(len(PATTERNS)) + (number - (len(cells) - 1) / 2) * 0.8 / len(cells)
            _errors(ax, own, cell, where, (*style[cell[0]][:2], faces[cell]))
        ax.set_yscale("log")
        words = [f"{name}{'' if COMPRESSIBLE[i] else ' *'}" for i, name in enumerate(PATTERNS)]
        ax.set_xticks(range(len(PATTERNS)), words, fontsize=7, rotation=30, ha="right", rotation_mode="anchor")
    figure.supxlabel("* not compressible by the verdict", fontsize=8)
    figure.supylabel("output error of a head, |cut - full| / |full|\n(last token, mean)", fontsize=9)
    return figure


def _errors(ax, own: pd.DataFrame, cell: tuple[str, str], where: np.ndarray, look: tuple) -> None:
    """One method's errors at one budget: a point per pattern with its interval."""
    seen, (method, budget) = own[own["method"].isna()], cell
    patterns = dict(zip(seen["sample"], tables.patterns_of(seen), strict=True))
    rows = own[own["sample"].isin(patterns) & (own["method"] == method) & (own["budget"] == budget)]
    if rows.empty:
        return
    error, mine = field(rows, "error", "last"), np.stack([patterns[sample] for sample in rows["sample"]])
    means = np.stack([_masked_mean(error, mine == kind) for kind in range(len(PATTERNS))], 1)
    mean, low, high = intervals(means, rows["cluster"])
    ends = np.nan_to_num(np.maximum(0, [mean - low, high - mean]))
    colour, marker, face = look
    ax.errorbar(where, mean, ends, fmt=marker, color=colour, markerfacecolor=face, markersize=4, linewidth=0.9)


def _masked_mean(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The mean over a sample's chosen heads, NaN where none is chosen."""
    count = mask.sum((1, 2))
    return np.where(count > 0, (values * mask).sum((1, 2)) / np.maximum(count, 1), np.nan)


def verdict_predicts(rows: pd.DataFrame, lines: pd.DataFrame) -> Figure:
    """Rank correlations of the verdict, and of entropy, with what eviction did: a panel an outcome, a line a cell."""
    lines = lines[(lines["over"] == "heads") & lines["rho"].notna()]
    panels = list(dict.fromkeys(zip(lines["samples"], lines["outcome"], strict=True)))
    cells = {(line.method, line.budget) for line in lines.itertuples()}
    keys = sorted(cells, key=lambda cell: (ordered([m for m, _ in cells]).index(cell[0]), cell[1]))
    looks_of = {"compressible": (GREEN, "o", "the verdict 'compressible'"), "entropy": (PURPLE, "s", "entropy")}
    handles = [Line2D([], [], color=c, marker=m, linestyle="none", label=text) for c, m, text in looks_of.values()]
    names = [f"{samples}\n{OUTCOMES.get(outcome, outcome)}" for samples, outcome in panels]
    figure, axes = canvas(rows, names, [*handles, interval_entry()], 0.7 + 0.2 * len(keys))
    for (samples, outcome), ax in zip(panels, axes, strict=True):
        own = lines[(lines["samples"] == samples) & (lines["outcome"] == outcome)]
        for line in own.itertuples():
            colour, marker, _ = looks_of[line.predictor]
            y = keys.index((line.method, line.budget)) + (0.17 if line.predictor == "entropy" else -0.17)
            ends = np.nan_to_num(np.maximum(0, [[line.rho - line.rho_low], [line.rho_high - line.rho]]))
            ax.errorbar(line.rho, y, xerr=ends, fmt=marker, color=colour, markersize=4)
        for place, cell in enumerate(keys):
            if not ((own["method"] == cell[0]) & (own["budget"] == cell[1])).any():
                ax.text(0.02, place, "no value", transform=ax.get_yaxis_transform(), va="center", fontsize=7)
        ax.set_yticks(range(len(keys)), [f"{method} {asked(budget)}" for method, budget in keys], fontsize=8)
        ax.axvline(0, color=BLACK, linewidth=0.8)
        ax.grid(axis="y", color="#E4E4E4", linewidth=0.6)
        ax.set_axisbelow(True)
        ax.set(xlim=(-1, 1), ylim=(len(keys) - 0.5, -0.5))
    figure.supxlabel("Spearman's rank correlation over a sample's heads (mean over samples)", fontsize=9)
    return figure
