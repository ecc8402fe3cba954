"""Pictures of needle runs: accuracy by depth and length, and how much of the needle each layer still holds."""

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from pvcbench.plots.style import BLACK, DASHED, SEQUENTIAL, asked, budgets_of, looks, metric, panels_of, subject
from pvcbench.stats import sizes
from pvcbench.stats.failures import reach
from pvcbench.stats.intervals import proportion_interval

BINS = ("0", "0-20", "20-40", "40-60", "60-80", "80-100", "100")  # % of the needle; the first and last are exact
POOLED = "all methods"
OFF = 2.0  # percentage points by which a needle may stand off the depth asked without a word


def needle_grid(rows: pd.DataFrame) -> Figure | None:
    """Accuracy by depth and length: methods down, budgets across, the full cache beside every method."""
    info = rows["sample_info"].map(lambda info: info if isinstance(info, dict) else {})
    rows = rows.assign(depth=info.map(lambda i: i.get("depth")), length=info.map(lambda i: i.get("length")))
    rows = sizes.with_bytes(rows[rows["depth"].notna() & rows["length"].notna()])
    if rows.empty:
        return None
    depths, lengths = sorted(rows["depth"].unique()), sorted(rows["length"].unique())
    full, others = rows[rows["reference"]], rows[~rows["reference"]]
    methods, budgets = list(others["method"].unique()) or [""], budgets_of(rows)
    wide, tall = 0.38 + 0.5 * len(lengths), 0.45 + 0.25 * len(depths)  # inches of one panel
    size = (max(5.8, 2.2 + wide * (1 + len(budgets))), 1.6 + tall * len(methods))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(methods), 1 + len(budgets), squeeze=False, sharex=True, sharey=True)
    for method, line in zip(methods, panels, strict=True):
        cells = [full] + [others[(others["method"] == method) & (others["budget"] == budget)] for budget in budgets]
        for cell, axes in zip(cells, line, strict=True):
            square_panel(axes, cell, depths, lengths)
        line[0].set_ylabel(f"{method}\ndepth, %" if method else "depth, %", fontsize=8)
    for heading, axes in zip(["full cache", *(f"asked {asked(budget)}" for budget in budgets)], panels[0], strict=True):
        axes.set_title(f"{heading}\n{axes.get_title()}", fontsize=8)
    figure.suptitle(subject(rows), fontsize=9)
    what = sizes.MEASURES["kept_bytes" if rows["kept_bytes"].notna().any() else "kept_fraction"]
    squares = "prompt length, tokens (in the squares: hits/samples; hatched: no value)"
    figure.supxlabel(f"{squares}\nkept: {what}, of samples with a value{misplaced(rows)}", fontsize=8)
    bar = {"shrink": min(1.0, 4 / len(methods)), "aspect": 30, "anchor": (0, 1), "pad": 0.02}
    figure.colorbar(ScalarMappable(cmap=SEQUENTIAL), ax=panels, label=metric(rows), **bar)
    return figure


def misplaced(rows: pd.DataFrame) -> str:
    """A line that says how far needles stand off the depths they are drawn at; nothing where it is two points at most.

    Rows hold each needle's real depth. Version 1 of the task, and a larger task.tolerance, let them stand further off.
    """
    real = rows["sample_info"].map(lambda info: info.get("real_depth")).astype(float)
    off = (real - rows["depth"].astype(float)).abs()
    far = off[off > OFF].groupby(rows["sample"]).max()
    if far.empty:
        return ""
    of = f"{len(far)} of {rows['sample'].nunique()}"
    return f"\nneedles of {of} samples stand up to {far.max():.1f} points off the depth"


def square_panel(axes, cell: pd.DataFrame, depths: list, lengths: list) -> None:
    """One method at one budget: a square per depth and length with hits/n; hatched where nothing was measured."""
    axes.set(xlim=(0, len(lengths)), ylim=(len(depths), 0))
    axes.set_xticks(np.arange(len(lengths)) + 0.5, [f"{length:,}" for length in lengths], fontsize=7)
    axes.set_yticks(np.arange(len(depths)) + 0.5, [f"{depth:g}" for depth in depths], fontsize=7)
    axes.tick_params(length=0)
    good, end = cell[cell["score"].notna()], reach(cell)
    if good.empty:
        why = "not\nasked" if cell.empty else "failed" if end is None else f"out of\nreach\n({end:.0f}%)"
        axes.set_facecolor("#EEEEEE")
        axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", va="center", fontsize=7, color="#555555")
        return
    kept = good.get("kept_bytes", good["kept_fraction"]).astype(float)
    kept = kept if kept.notna().any() else good["kept_fraction"].astype(float)
    lost = f"\n{len(good)} of {len(cell)} samples" if len(good) < len(cell) else ""
    axes.set_title(f"kept {100 * kept.mean():.1f}%{lost}", fontsize=7)
    for (y, depth), (x, length) in ((a, b) for a in enumerate(depths) for b in enumerate(lengths)):
        square = cell[(cell["depth"] == depth) & (cell["length"] == length)]
        scores, ink, label = square["score"].dropna().astype(float), "#555555", ""
        look = {"facecolor": "white", "edgecolor": "#AAAAAA", "hatch": "/////"}
        if len(scores):
            look = {"facecolor": SEQUENTIAL(scores.mean()), "edgecolor": "white"}
            ink, label = "black" if scores.mean() > 0.55 else "white", f"{round(scores.sum(), 1):g}/{len(scores)}"
        elif reach(square) is not None:
            look, label = {"facecolor": "#EEEEEE", "edgecolor": "white"}, "reach"
        axes.text(x + 0.5, y + 0.5, label, ha="center", va="center", fontsize=7, color=ink)
        axes.add_patch(Rectangle((x, y), 1, 1, linewidth=0.5, **look))


def needle_shares(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that know how much of their needle survived, with `layers` (array) and `survival` (mean over layers)."""
    rows = rows.reset_index(drop=True)
    spans = rows["spans_kept"].map(lambda spans: spans.get("needle") if isinstance(spans, dict) else None)
    known = rows[spans.notna() & rows["score"].notna()]
    layers = spans[known.index].map(lambda shares: np.array(shares, dtype=float))
    known = known.assign(layers=layers, survival=layers.map(lambda a: np.nan if np.isnan(a).all() else np.nanmean(a)))
    return known[known["survival"].notna()]


def needle_survival(rows: pd.DataFrame) -> Figure | None:
    """The share of the needle's tokens that each layer still holds: a panel per method, a line per budget."""
    known, budgets = needle_shares(rows), budgets_of(rows)
    methods = list(known[~known["reference"]]["method"].unique())
    if not methods:
        return None
    figure, panels = panels_of(len(methods), rows)
    for name, axes in zip(methods, panels, strict=True):
        absent, partial = [], []
        for number, budget in enumerate(budgets):
            layers = known[(known["method"] == name) & (known["budget"] == budget)]["layers"]
            asked_of = int(((rows["method"] == name) & (rows["budget"] == budget)).sum())
            partial += [f"{asked(budget)}: {len(layers)} of {asked_of}"] if 0 < len(layers) < asked_of else []
            if len(layers):
                rest = 1 - number / max(1, len(budgets) - 1)  # equal lines show behind each other: the first is widest
                colour, width = SEQUENTIAL(0.9 * rest), 1 + 2 * rest
                share = 100 * np.mean(np.stack(list(layers)), axis=0)
                axes.plot(share, color=colour, marker=".", linewidth=width, clip_on=False, label=asked(budget))
            elif asked_of:
                absent.append(asked(budget))
        axes.axhline(100, color=BLACK, linestyle=DASHED, linewidth=1, label="full cache")
        notes = [f"no value at {', '.join(absent)}"] * bool(absent) + [f"samples at {', '.join(partial)}"] * bool(
            partial
        )
        axes.set(title=name + (f" ({'; '.join(notes)})" if notes else ""), ylim=(-3, 103))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.supxlabel("layer")
    figure.supylabel("needle's tokens still cached, %")
    handles = {handle.get_label(): handle for axes in panels for handle in axes.get_legend_handles_labels()[0]}
    order = [label for label in [*map(asked, budgets), "full cache"] if label in handles]
    figure.legend([handles[label] for label in order], order, title="budget asked", loc="outside right upper")
    return figure


def survival_table(rows: pd.DataFrame) -> pd.DataFrame:
    """How often answers got the full score, by how much of the needle survived; per method and pooled, without full.

    A prompt answered at several budgets, or by several methods, is one cluster of the interval.
    """
    known = needle_shares(rows[~rows["reference"].astype(bool)])
    inner = np.digitize(known["survival"], (0.2, 0.4, 0.6, 0.8)) + 1
    number = np.select([known["survival"] <= 0, known["survival"] >= 1], [0, len(BINS) - 1], inner)
    known = known.assign(bin=number, hit=known["score"].astype(float) >= 1)
    lines = []
    for name, part in [(POOLED, known), *known.groupby("method", sort=False)]:
        for number, cell in part.groupby("bin"):
            ends = proportion_interval(cell["hit"], cell["cluster"])
            lines.append((name, BINS[number], len(cell), int(cell["hit"].sum()), *ends))
    return pd.DataFrame(lines, columns=["method", "survival", "samples", "hits", "low", "high"])


def survival_accuracy(rows: pd.DataFrame) -> Figure | None:
    """The share of right answers by how much of the needle survived, with intervals over prompts and counts."""
    table = survival_table(rows)
    if table.empty:
        return None
    style = looks(rows["method"].unique()) | {POOLED: (BLACK, "o", "-")}
    figure, panels = panels_of(table["method"].nunique(), rows)
    for (name, part), axes in zip(table.groupby("method", sort=False), panels, strict=True):
        values = np.full((3, len(BINS)), np.nan)  # empty bins interrupt the line
        for survival, samples, hits, *ends in part.drop(columns="method").itertuples(index=False):
            place = BINS.index(survival)
            values[:, place] = hits / samples, *ends
            axes.text(place, 1.08, f"{hits}/{samples}", ha="center", fontsize=6.5)
        share, low, high = values
        error = np.maximum(0, [share - low, high - share])
        axes.errorbar(range(len(BINS)), share, error, color=style[name][0], marker=style[name][1], capsize=3)
        axes.set(title=name, ylim=(-0.04, 1.2), xlim=(-0.5, len(BINS) - 0.5), yticks=np.linspace(0, 1, 6))
        axes.set_xticks(range(len(BINS)), BINS, rotation=45, fontsize=7)
    figure.supxlabel("needle's tokens still cached, % (mean over layers; all budgets together)")
    figure.supylabel("answers with the full score")
    return figure
