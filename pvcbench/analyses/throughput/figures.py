"""Pictures of speed and memory: tokens per second, peaks and largest batches, a panel per setting."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from pvcbench.analyses.common import canvas
from pvcbench.analyses.throughput import tables
from pvcbench.plots.style import BLACK, BLUE, DASHED, DOTTED, ORANGE, PURPLE, asked, looks

HEIGHT = 0.38  # inches a cell takes in a panel
SPEEDS = {
    "decode_speed": ("decode_tokens_per_s", "decoded tokens per second (prompts not counted)"),
    "paper_speed": ("paper_tokens_per_s", "tokens per second, prompts counted (the paper's way)"),
}


def figures(rows: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Speeds in two ways, peaks, and the largest batches where they were searched."""
    done = rows[rows["error"].isna()]
    if done.empty:
        return
    theirs = tables.published(done)
    for name, (measure, label) in SPEEDS.items():
        yield name, _speed(done, measure, label, theirs if name == "paper_speed" else theirs.iloc[:0])
    if done["peak_bytes"].notna().any():
        yield "peak_memory", _peaks(done)
    searched = done[done["metrics"].map(lambda found: "largest_batch" in found)]
    if len(searched):
        yield "largest_batch", _largest(searched, theirs)


def _panels(rows: pd.DataFrame, theirs: pd.DataFrame) -> Iterator:
    """The figure first, then each setting's axes, rows and published lines; cells from top to bottom."""
    settings = {tables.setting(row): row.sample for row in rows.itertuples()}
    parts = {name: rows[rows["sample"] == sample] for name, sample in settings.items()}
    known = {name: theirs[theirs["samples"] == name] if len(theirs) else theirs for name in parts}
    tallest = max(len(part) + len(known[name]) for name, part in parts.items())
    titles = [name.replace(", ", "\n") for name in parts]
    figure, axes = canvas(rows, titles, tall=0.9 + HEIGHT * tallest, shared=False)
    yield figure
    for ax, (name, part) in zip(axes, parts.items(), strict=True):
        ours = [row.method if row.reference else f"{row.method} {asked(row.budget)}" for row in part.itertuples()]
        labels = [*ours, *(_claim(line) for line in known[name].itertuples())]
        ax.set_yticks(range(len(labels)), labels)
        ax.set_ylim(len(labels) - 0.4, -0.6)
        yield ax, part, known[name]


def _claim(line) -> str:
    """A published number's label: whose, at which batch, and what it was said to be over the baseline."""
    more = f", {line.claimed_speedup:g}x claimed" if line.claimed_speedup > 0 else ""
    return f"{line.system}, published\nbatch {line.batch}{more}"


def _speed(rows: pd.DataFrame, measure: str, label: str, theirs: pd.DataFrame) -> Figure:
    """The mean over repeats with its interval, every repeat as a dot, and the full cache as a line."""
    figure, *panels = _panels(rows, theirs)
    style = looks(rows["method"].unique())
    for ax, part, known in panels:
        for place, row in enumerate(part.itertuples()):
            colour, marker, _ = style[row.method]
            values = np.asarray(row.repeats[measure], dtype=float)
            mean, low, high = tables.interval(np.log(values))
            ax.plot(values, np.full(len(values), place + 0.22), ".", color=colour, markersize=4, alpha=0.7)
            if not np.isnan(low):
                ax.plot([low, high], [place, place], color=colour, linewidth=1.4)
            ax.plot(
                mean, place, marker=marker, color=colour, markersize=8, markeredgecolor="white", markeredgewidth=0.5
            )
            if row.reference:
                ax.axvline(mean, color=colour, linestyle=DASHED, linewidth=1, zorder=1)
        for place, line in enumerate(known.itertuples(), start=len(part)):
            ax.plot(line.paper_tokens_per_s, place, "D", markerfacecolor="none", color=BLACK, markersize=5)
        ax.set_xlim(0, 1.12 * max(np.max(line.get_xdata()) for line in ax.get_lines()))
    handles = [
        Line2D([], [], color=BLACK, linestyle=DASHED, label="the full cache here"),
        Line2D([], [], color=BLACK, marker="o", markersize=5, label="mean of repeats, 95% interval"),
        Line2D([], [], color=BLACK, marker=".", markersize=4, linestyle="none", label="each repeat"),
    ]
    if len(theirs):
        where = f"published: {theirs['source'].iloc[0]},\n{theirs['hardware'].iloc[0]}"
        handles.append(Line2D([], [], color=BLACK, marker="D", markerfacecolor="none", linestyle="none", label=where))
    for ax, *_ in panels:
        ax.set_xlabel(label, fontsize=9)
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def _peaks(rows: pd.DataFrame) -> Figure:
    """Peak memory while prompts are read and compressed, and while tokens are generated; medians of repeats."""
    figure, *panels = _panels(rows, pd.DataFrame())
    kinds = {"prefill_peak_bytes": (BLUE, "prefill and compression"), "decode_peak_bytes": (ORANGE, "decoding")}
    for ax, part, _ in panels:
        for number, (key, (colour, _)) in enumerate(kinds.items()):
            sizes = [(row.metrics[key] or 0) / tables.GIB for row in part.itertuples()]
            ax.barh(np.arange(len(sizes)) + 0.36 * number - 0.18, sizes, 0.34, color=colour)
        ax.axvline(part["metrics"].iloc[0]["weight_bytes"] / tables.GIB, color=PURPLE, linestyle=DOTTED, linewidth=1.2)
        limits = {row.search["limit"] / tables.GIB for row in part.itertuples() if isinstance(row.search, dict)}
        for limit in limits:
            ax.axvline(limit, color=BLACK, linestyle=DASHED, linewidth=1)
    handles = [Patch(color=colour, label=name) for colour, name in kinds.values()]
    handles.append(Line2D([], [], color=PURPLE, linestyle=DOTTED, label="the model's weights"))
    if rows["search"].map(lambda search: isinstance(search, dict)).any():
        handles.append(Line2D([], [], color=BLACK, linestyle=DASHED, label="limit of a largest batch"))
    for ax, *_ in panels:
        ax.set_xlabel("peak memory, GiB\n(of tensors on a GPU, of the whole process on a CPU)", fontsize=9)
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def _largest(rows: pd.DataFrame, theirs: pd.DataFrame) -> Figure:
    """The largest batch of each cell, and published ones."""
    figure, *panels = _panels(rows, theirs)
    style = looks(rows["method"].unique())
    for ax, part, known in panels:
        sizes = [row.metrics["largest_batch"] for row in part.itertuples()]
        ax.barh(range(len(sizes)), sizes, 0.6, color=[style[name][0] for name in part["method"]])
        others = known["batch"].tolist() if len(known) else []
        places = range(len(sizes), len(sizes) + len(others))
        ax.barh(places, others, 0.6, facecolor="none", edgecolor=BLACK, hatch="////")
        bounds = ["" if row.search["settled"] else " or more" for row in part.itertuples()] + [""] * len(others)
        for place, (size, bound) in enumerate(zip([*sizes, *others], bounds, strict=True)):
            ax.annotate(f" {size}{bound}", (size, place), va="center", fontsize=8)
        ax.margins(x=0.12)
    for ax, *_ in panels:
        ax.set_xlabel("largest batch that fits, prompts", fontsize=9)
    return figure
