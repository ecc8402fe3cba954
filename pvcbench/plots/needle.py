"""Pictures of needle runs: accuracy by depth and length, and how much of the needle each layer still holds."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from pvcbench.plots.canvas import WIDTH, apart, head, interval_entry, panels_of
from pvcbench.plots.style import (
    BLACK,
    DASHED,
    SEQUENTIAL,
    amount,
    asked,
    budgets_of,
    looks,
    methods_of,
    metric,
    subject,
)
from pvcbench.stats import sizes
from pvcbench.stats.failures import reach, without_value
from pvcbench.stats.intervals import mean_interval, proportion_interval

DRAWN = ("method", "budget", "reference", "depth", "length", "score", "reach", "error", "kept_bytes", "kept_fraction")
GAP = 0.2  # between the blocks of a grid, in squares
BINS = ("0", "0-20", "20-40", "40-60", "60-80", "80-100", "100")  # % of the needle; the first and last are exact
POOLED = "all methods"
OFF = 2.0  # percentage points by which a needle may stand off the depth asked without a word


def needle_grid(rows: pd.DataFrame) -> Figure | None:
    """Accuracy by depth and length: a panel per method, in it a block per budget, small to large, the full cache last.

    Blocks are columns of one panel and not panels themselves, which drawing takes four times as long.
    """
    info = rows["sample_info"].map(lambda info: info if isinstance(info, dict) else {})
    rows = rows.assign(depth=info.map(lambda i: i.get("depth")), length=info.map(lambda i: i.get("length")))
    rows = sizes.with_bytes(rows[rows["depth"].notna() & rows["length"].notna()])
    if rows.empty:
        return None
    depths, lengths = sorted(rows["depth"].unique()), sorted(rows["length"].unique())
    methods, budgets = methods_of(rows) or [""], budgets_of(rows)
    few = rows[[name for name in DRAWN if name in rows]]  # rows have fifty columns, and each block is a choice of them
    full, others = few[few["reference"]], dict(list(few[~few["reference"]].groupby(["method", "budget"])))
    wide = max(0.42, min(0.75, (WIDTH - 1.2) / ((1 + len(budgets)) * len(lengths))))  # inches of a square
    across = 1.2 + (wide * len(lengths) + GAP * wide) * (1 + len(budgets))
    figure = Figure(figsize=(max(5.0, across), 1.5 + (0.45 + 0.2 * len(depths)) * len(methods)), layout="constrained")
    panels = figure.subplots(len(methods), 1, squeeze=False, sharex=True)[:, 0]
    first = [others.get((methods[0], budget), few.iloc[:0]) for budget in budgets]
    above = 13 if any(kept_of(cell, cell[cell["score"].notna()]) for cell in first if len(cell)) else 3  # points
    for method, axes in zip(methods, panels, strict=True):
        cells = [others.get((method, budget), few.iloc[:0]) for budget in budgets] + [full]
        words = [*(asked(budget) for budget in budgets), "full cache"]
        for place, (cell, word) in enumerate(zip(cells, words, strict=True)):
            block(axes, place * (len(lengths) + GAP), cell, (depths, lengths), word, above)
        above = None
        starts = [place * (len(lengths) + GAP) for place in range(len(cells))]
        _square_axes(axes, starts, depths, lengths)
        axes.set_ylabel(f"{method}\ndepth, %" if method else "depth, %", fontsize=8)
    head(figure, subject(rows))
    what = sizes.MEASURES["kept_bytes" if rows["kept_bytes"].notna().any() else "kept_fraction"]
    squares = "prompt length, tokens (in the squares: right answers/samples; hatched: no value)"
    above = f"above: the size asked for; kept: {what}, where it is another"
    figure.supxlabel(f"{squares}\n{above}{misplaced(rows)}", fontsize=8)
    bar = {"shrink": min(1.0, 3 / len(methods)), "aspect": 25, "anchor": (0, 1), "pad": 0.01}
    figure.colorbar(ScalarMappable(cmap=SEQUENTIAL), ax=list(panels), label=metric(rows), **bar)
    return figure


def _square_axes(axes, starts: Sequence[float], depths: list, lengths: list) -> None:
    """Ticks of depths and lengths, and no frame."""
    ticks = [start + number + 0.5 for start in starts for number in range(len(lengths))]
    axes.set(xlim=(-0.05, starts[-1] + len(lengths) + 0.05), ylim=(len(depths), 0))
    axes.set_xticks(ticks, [f"{length:,}" for length in lengths] * len(starts), fontsize=7)
    axes.set_yticks(np.arange(len(depths)) + 0.5, [f"{depth:g}" for depth in depths], fontsize=7)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


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


def block(axes, start: float, cell: pd.DataFrame, squares: tuple[list, list], word: str, above) -> None:
    """One method at one budget: a square per depth and length with hits/n, from `start` on; hatched where unmeasured.

    `squares` are the depths and the lengths; `word`, the size asked for, stands `above` the block by so many points.
    """
    depths, lengths = squares
    middle, good, end = start + len(lengths) / 2, cell[cell["score"].notna()], reach(cell)
    over = {"ha": "center", "va": "bottom", "fontsize": 7}
    if above is not None:
        axes.annotate(word, (middle, 0), (0, above), textcoords="offset points", ha="center", va="bottom", fontsize=8)
    if good.empty:
        why = "not\nasked" if cell.empty else without_value(cell["error"].iloc[0]).replace(" ", "\n")
        why = why if end is None else f"out of\nreach\n({end:.0f}%)"
        axes.add_patch(Rectangle((start, 0), len(lengths), len(depths), facecolor="#EEEEEE", linewidth=0))
        axes.text(middle, len(depths) / 2, why, ha="center", va="center", fontsize=7, color="#555555")
        return
    axes.annotate(kept_of(cell, good), (middle, 0), (0, 2), textcoords="offset points", **over)
    own = dict(list(cell.groupby(["depth", "length"])))
    for (y, depth), (x, length) in ((a, b) for a in enumerate(depths) for b in enumerate(lengths)):
        square = own.get((depth, length), cell.iloc[:0])
        scores, ink, label = square["score"].dropna().to_numpy(float), "#555555", ""
        look = {"facecolor": "white", "edgecolor": "#AAAAAA", "hatch": "/////"}
        if len(scores):
            look = {"facecolor": SEQUENTIAL(scores.mean()), "edgecolor": "white"}
            ink, label = "black" if scores.mean() > 0.55 else "white", f"{round(scores.sum(), 1):g}/{len(scores)}"
        elif reach(square) is not None:
            look, label = {"facecolor": "#EEEEEE", "edgecolor": "white"}, "reach"
        axes.text(start + x + 0.5, y + 0.5, label, ha="center", va="center", fontsize=7, color=ink)
        axes.add_artist(Rectangle((start + x, y), 1, 1, linewidth=0.5, **look))


def kept_of(cell: pd.DataFrame, good: pd.DataFrame) -> str:
    """What a cell kept where that is not the share asked for, and of how many samples that and its squares are."""
    kept = good.get("kept_bytes", good["kept_fraction"]).astype(float)
    kept = kept if kept.notna().any() else good["kept_fraction"].astype(float)
    wanted = 1.0 if cell["reference"].any() else amount(cell["budget"].iloc[0])
    same = wanted is not None and wanted <= 1 and abs(kept.mean() - wanted) < 0.005
    told = "" if same else f"kept {100 * kept.mean():.1f}%"
    return told + f"\n{len(good)} of {len(cell)} samples" * (len(good) < len(cell))


def needle_shares(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that know how much of their needle survived, with `layers` (array) and `survival` (mean over layers)."""
    rows = rows.reset_index(drop=True)
    spans = rows["spans_kept"].map(lambda spans: spans.get("needle") if isinstance(spans, dict) else None)
    known = rows[spans.notna() & rows["score"].notna()]
    layers = spans[known.index].map(lambda shares: np.array(shares, dtype=float))
    known = known.assign(layers=layers, survival=layers.map(lambda a: np.nan if np.isnan(a).all() else np.nanmean(a)))
    return known[known["survival"].notna()]


def needle_survival(rows: pd.DataFrame) -> Figure | None:
    """The share of the needle's tokens that each layer still holds: a panel per method, a line per budget.

    At the right, behind the last layer: the mean over layers with its interval over samples, and the budgets of a line;
    those of one line share a label.
    """
    known, budgets = needle_shares(rows), budgets_of(rows)
    methods = methods_of(known)
    if not methods:
        return None
    full = Line2D([], [], color=BLACK, linestyle=DASHED, linewidth=1, label="full cache")
    means = interval_entry("right: mean over layers, 95% interval, with the size asked for")
    figure, panels = panels_of(len(methods), rows, [full, means], 2, 2.3)
    for name, axes in zip(methods, panels, strict=True):
        own = rows[rows["method"] == name]
        notes = _survival_lines(axes, known[known["method"] == name], own, budgets)
        axes.axhline(100, color=BLACK, linestyle=DASHED, linewidth=1, label="full cache")
        axes.set(title=name + (f" ({'; '.join(notes)})" if notes else ""), ylim=(-3, 103))
    figure.supxlabel("layer", fontsize=9)
    figure.supylabel("needle's tokens still cached, % (mean over samples)", fontsize=9)
    return figure


def _survival_lines(axes, known: pd.DataFrame, own: pd.DataFrame, budgets: Sequence[str]) -> list[str]:
    """The lines of one method, the mean over layers and the size at their right; returns what to say of absences."""
    absent, partial, labels, last = [], [], {}, 0
    for number, budget in enumerate(budgets):
        cell = known[known["budget"] == budget]
        asked_of = int((own["budget"] == budget).sum())
        partial += [f"{asked(budget)}: {len(cell)} of {asked_of}"] if 0 < len(cell) < asked_of else []
        absent += [asked(budget)] if asked_of and cell.empty else []
        if cell.empty:
            continue
        rest = 1 - number / max(1, len(budgets) - 1)  # equal lines show behind each other: the first is widest
        colour, width = SEQUENTIAL(0.85 * rest), 1 + 2 * rest
        share = 100 * np.mean(np.stack(list(cell["layers"])), axis=0)
        axes.plot(share, color=colour, linewidth=width, clip_on=False, label=asked(budget))
        mean, last = 100 * cell["survival"].astype(float), len(share)
        ends = mean_interval(mean / 100, cell["cluster"], cell["stratum"], True)
        at = last * (1.03 + 0.018 * number)
        axes.vlines(at, *([100 * end for end in ends] if ends else [mean.mean()] * 2), color=colour, linewidth=1.4)
        axes.plot(at, mean.mean(), "o", color=colour, markersize=4, clip_on=False, label=f"mean of {asked(budget)}")
        labels.setdefault(round(float(mean.mean())), []).append(asked(budget))
    heights = apart(list(labels), 9.5, 0, 100)
    for height, words in zip(heights, labels.values(), strict=True):
        text = ", ".join([*(word.removesuffix("%") for word in words[:-1]), words[-1]])
        axes.text(last * (1.05 + 0.018 * len(budgets)), height, text, va="center", fontsize=7.5)
    axes.set_xlim(-0.03 * last, 1.42 * last)
    axes.set_xticks(range(0, last, max(1, round(last / 6))))
    notes = [f"no value at {', '.join(absent)}"] * bool(absent)
    return notes + [f"samples at {', '.join(partial)}"] * bool(partial)


def survival_table(rows: pd.DataFrame) -> pd.DataFrame:
    """How often answers got the full score, by how much of the needle survived; per method and pooled, without full.

    A prompt answered at several budgets, or by several methods, is one cluster of the interval.
    """
    known = needle_shares(rows[~rows["reference"].astype(bool)])
    inner = np.digitize(known["survival"], (0.2, 0.4, 0.6, 0.8)) + 1
    number = np.select([known["survival"] <= 0, known["survival"] >= 1], [0, len(BINS) - 1], inner)
    known = known.assign(bin=number, hit=known["score"].astype(float) >= 1)
    lines = []
    for name, part in [(POOLED, known), *((one, known[known["method"] == one]) for one in methods_of(known))]:
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
    counts = interval_entry("95% interval over prompts; above: right answers/all")
    figure, panels = panels_of(table["method"].nunique(), rows, [counts])
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
    figure.supxlabel("needle's tokens still cached, % (mean over layers; all sizes together)", fontsize=9)
    figure.supylabel("share of answers with the full score", fontsize=9)
    return figure
