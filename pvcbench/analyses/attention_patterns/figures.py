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
from pvcbench.analyses.common import canvas, field, groups, intervals, layer_bar, layer_colours, observations, subject
from pvcbench.plots.style import BLACK, BLUE, DASHED, GREEN, ORANGE, PURPLE, RED, SKY, asked, looks

COLOURS = dict(zip(PATTERNS, (PURPLE, ORANGE, BLACK, SKY, RED, BLUE), strict=True))
VERDICT = {True: "compressible", False: "not compressible"}


def figures(rows: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Every picture that these rows allow, by name."""
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
    """The most frequent pattern of each head over the samples, at the last row; pale where under half agree."""
    panels = dict(groups(seen))
    figure, axes = canvas(seen, list(panels), (3.6, 3.6))
    scale = ListedColormap([COLOURS[name] for name in PATTERNS])
    for own, ax in zip(panels.values(), axes, strict=True):
        counts = np.stack([(tables.patterns_of(own) == number).mean(0) for number in range(len(PATTERNS))])
        mode, share = counts.argmax(0), counts.max(0)
        alpha = np.where(share >= 0.5, 1.0, 0.45)
        ax.imshow(mode, cmap=scale, norm=BoundaryNorm(np.arange(7) - 0.5, 6), alpha=alpha, aspect="auto")
        ax.set(xticks=range(mode.shape[1]))
        _layer_ticks(ax, own)
    figure.supxlabel("query head")
    figure.supylabel("layer")
    marks = [Patch(color=COLOURS[name], label=name) for name in PATTERNS]
    figure.legend(
        handles=marks, title="most frequent pattern\n(pale: in under half\nof the samples)", loc="outside right upper"
    )
    return figure


def _layer_ticks(ax, own: pd.DataFrame) -> None:
    """Every fifth observed layer on the y axis."""
    layers = own["observed"].iloc[0]["layers"]
    places = range(0, len(layers), 5)
    ax.set_yticks(places, [layers[place] for place in places])


def pattern_examples(seen: pd.DataFrame) -> Figure:
    """The clearest head of each pattern over all samples of the longest length: its mass against position."""
    lengths = field(seen, "tokens")
    seen = seen[lengths == lengths.max()]
    figure = Figure(figsize=(9.6, 5.4), layout="constrained")
    for number, (name, ax) in enumerate(zip(PATTERNS, figure.subplots(2, 3).flat, strict=True)):
        found = [(e["clearness"], e, row) for row in seen.itertuples() if (e := row.observed["examples"].get(name))]
        if not found:
            ax.set_title(f"{name}: no head", color="#555555")
            ax.set(xticks=[], yticks=[])
            continue
        _, example, row = max(found, key=lambda item: item[0])
        mass, tokens = 100 * np.array(example["mass"]), row.observed["tokens"]
        places = (np.arange(len(mass)) + 0.5) * tokens / len(mass)
        ax.vlines(places, 1e-4, np.maximum(mass, 1e-4), color=COLOURS[name], linewidth=1)
        ax.set_yscale("log")
        ax.set(ylim=(1e-3, 150), xlim=(-0.02 * tokens, 1.02 * tokens))
        what = f"sink {example['sink']:.1%}, recent {example['recent']:.1%}, middle {example['middle']:.1%}"
        text = f"{name}: {VERDICT[bool(COMPRESSIBLE[number])]}\nlayer {example['layer']}, head {example['head']}, "
        ax.set_title(f"{text}H {example['entropy']:.2f}\n{what}", fontsize=8)
    figure.suptitle(f"{subject(seen)}: the clearest head of each pattern", fontsize=9)
    figure.supxlabel("position in the prompt, tokens")
    figure.supylabel(f"attention of the last row, % in each {tokens / len(mass):.0f} tokens (log)")
    return figure


def entropy_by_layer(seen: pd.DataFrame) -> Figure:
    """Mean entropy of a layer's heads, as it is and weighted by value norms, with the largest there can be."""
    panels = dict(groups(seen))
    figure, axes = canvas(seen, list(panels))
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
        right.set_ylabel("exp(H), tokens", fontsize=8)
    figure.supxlabel("layer (bands: 95% intervals over samples)")
    figure.supylabel("entropy of the last row's attention, nats\n(mean over heads)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
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
    figure.supxlabel("K, entries")
    figure.supylabel("attention on the heaviest K entries, %\n(mean over a layer's heads)")
    layer_bar(figure, axes, len(mass))
    return figure


def error_by_pattern(rows: pd.DataFrame) -> Figure:
    """The output error that each method leaves at its smallest and largest budget, by the head's pattern."""
    good = rows[rows["error"].isna()]
    panels = {name: own for name, own in groups(good) if own["method"].notna().any()}
    style = looks(good["method"].dropna().unique())
    figure, axes = canvas(rows, list(panels))
    for own, ax in zip(panels.values(), axes, strict=True):
        seen = own[own["method"].isna()]
        patterns = dict(zip(seen["sample"], tables.patterns_of(seen), strict=True))
        cells = list(own[own["sample"].isin(patterns)].groupby(["method", "budget"], sort=False))
        for number, ((method, budget), cell) in enumerate(cells):
            error = field(cell, "error", "last")
            mine = np.stack([patterns[sample] for sample in cell["sample"]])
            means = np.stack([_masked_mean(error, mine == kind) for kind in range(len(PATTERNS))], 1)
            mean, low, high = intervals(means, cell["cluster"])
            x = np.arange(len(PATTERNS)) + (number - (len(cells) - 1) / 2) * 0.8 / len(cells)
            (colour, marker, _), label = style[method], f"{method} {asked(budget)}"
            face = colour if number % 2 == 0 else "white"
            ends = np.nan_to_num(np.maximum(0, [mean - low, high - mean]))
            ax.errorbar(x, mean, ends, fmt=marker, color=colour, markerfacecolor=face, markersize=4, label=label)
        ax.set_yscale("log")
        names = [f"{name}\n({'' if COMPRESSIBLE[i] else 'not '}compr.)" for i, name in enumerate(PATTERNS)]
        ax.set_xticks(range(len(PATTERNS)), names, fontsize=6.5)
    figure.supylabel("output error of a head, |cut - full| / |full|\n(last row, mean; bars: 95% intervals)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
    return figure


def _masked_mean(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The mean over a sample's chosen heads, NaN where none is chosen."""
    count = mask.sum((1, 2))
    return np.where(count > 0, (values * mask).sum((1, 2)) / np.maximum(count, 1), np.nan)


def verdict_predicts(rows: pd.DataFrame, lines: pd.DataFrame) -> Figure:
    """Rank correlations of the verdict, and of entropy, with what eviction did: a point per method and budget."""
    lines = lines[(lines["over"] == "heads") & lines["rho"].notna()]
    panels = list(dict.fromkeys(lines["samples"]))
    figure, axes = canvas(rows, panels, (4.6, 0.6 + 0.17 * len(lines) / max(1, len(panels))), shared=False)
    colours = {"compressible": GREEN, "entropy": PURPLE}
    for name, ax in zip(panels, axes, strict=True):
        own = lines[lines["samples"] == name]
        keys = list(dict.fromkeys(zip(own["outcome"], own["method"], own["budget"], strict=True)))
        for line in own.itertuples():
            y = keys.index((line.outcome, line.method, line.budget)) + (0.15 if line.predictor == "entropy" else -0.15)
            ends = np.nan_to_num(np.maximum(0, [[line.rho - line.rho_low], [line.rho_high - line.rho]]))
            marker = "o" if line.predictor == "compressible" else "s"
            ax.errorbar(line.rho, y, xerr=ends, fmt=marker, color=colours[line.predictor], markersize=3.5)
        texts = [f"{outcome}: {method} {asked(budget)}" for outcome, method, budget in keys]
        ax.set_yticks(range(len(keys)), texts, fontsize=6.5)
        ax.axvline(0, color=BLACK, linewidth=0.8)
        ax.set(xlim=(-1, 1), ylim=(len(keys) - 0.5, -0.5))
    figure.supxlabel("Spearman's rho over a sample's heads (mean over samples, 95% intervals)")
    marks = [
        Line2D([], [], color=colours["compressible"], marker="o", linestyle="none", label="verdict 'compressible'")
    ]
    marks += [Line2D([], [], color=colours["entropy"], marker="s", linestyle="none", label="entropy")]
    figure.legend(handles=marks, title="predictor", loc="outside right upper")
    return figure
