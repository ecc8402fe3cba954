"""Figures over all runs of an experiment: the Pareto front by bytes and time, and differences to the full cache.

Rows of several seeds may be joined; `compared` is `significance.compared` of them.
"""

from collections.abc import Mapping
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pvcbench.plots.style import (
    BLACK,
    GREY,
    HOLM_NOTE,
    incomplete_entry,
    looks,
    mark_incomplete,
    metric,
    panels_of,
    subject,
)
from pvcbench.stats import ranking, sizes
from pvcbench.stats.significance import ALPHA

STEP = "step_ms"


def front(cost: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Which points no other point beats: one that costs no more and is worth no less, and better in one of the two."""
    cost, value = np.asarray(cost, dtype=float), np.asarray(value, dtype=float)
    no_worse = (cost[None] <= cost[:, None]) & (value[None] >= value[:, None])
    better = (cost[None] < cost[:, None]) | (value[None] > value[:, None])
    return ~(no_worse & better).any(1)


def decode_times(every: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Milliseconds a decoding step took in runs that timed each cell alone: task=throughput, the same model.

    Of several settings the one nearest in prompt length is taken, and of these the smallest batch: columns method,
    budget, step_ms (median), least, most, setting, run. Empty where nothing was timed.
    """
    timed = every[(every["task"] == "throughput") & (every["model"] == rows["model"].iloc[0]) & every["error"].isna()]
    if timed.empty:
        return pd.DataFrame(columns=["method", "budget", STEP, "least", "most", "setting", "run"])
    told = timed["sample_info"]
    distance = (told.map(lambda one: one["prompt"]) - rows["prompt_tokens"].mean()).abs()
    size = timed["metrics"].map(lambda one: one["batch"])
    timed = timed.assign(distance=distance, size=size).sort_values(["distance", "size", "run"], kind="stable")
    first = timed.iloc[0]
    timed = timed[(timed["sample"] == first["sample"]) & (timed["run"] == first["run"])]
    lines = []
    for row in timed.itertuples():
        steps = [1e3 * row.size / speed for speed in row.repeats["decode_tokens_per_s"]]
        line = {"method": row.method, "budget": row.budget, STEP: float(np.median(steps))}
        where = f"batch {row.size}, {row.sample_info['prompt']:,} prompt tokens, run {row.run}"
        lines.append(line | {"least": min(steps), "most": max(steps), "setting": where, "run": row.run})
    return pd.DataFrame(lines)


def pareto(rows: pd.DataFrame, compared: pd.DataFrame, times: pd.DataFrame) -> Figure:
    """Score against the cache's size, and against the time of a step where that was measured: points, and their front.

    Sizes are shares of the full cache's bytes on the same samples; without a full cache they are bytes.
    """
    table = compared[compared["score"].notna()].merge(times, on=["method", "budget"], how="left")
    table = table.assign(leaks=table["leaks"] | table["method"].isin(ranking.leaking(rows)))
    timed = table[table[STEP].notna()]
    wide = 1 + (len(timed) > 1)
    style = looks(rows["method"].unique())
    figure = Figure(figsize=(2.4 + 4.0 * wide, max(4.2, 1.4 + 0.21 * len(style))), layout="constrained")
    panels = figure.subplots(1, wide, squeeze=False, sharey=True)[0]
    share = sizes.axis(table) == "kept_bytes"
    _points(panels[0], table.assign(size=100 * table["kept_bytes"] if share else table["mib"]), "size", style)
    panels[0].set(xlabel=sizes.label(table) if share else "KV cache, MiB (measured)")
    if wide > 1:
        _points(panels[1], timed, STEP, style)
        panels[1].hlines(timed["score"], timed["least"], timed["most"], color=GREY, linewidth=0.8, zorder=1)
        panels[1].set(xlabel=f"a decoding step, ms (median, smallest to largest)\n{timed['setting'].iloc[0]}")
    if "perplexity" in table:
        panels[0].set_ylabel("perplexity (lower is better)")
        panels[0].set_yscale("log" if table["score"].max() > 4 * table["score"].min() else "linear")
    else:
        panels[0].set_ylabel(metric(rows))
        if table["score"].between(0, 1).all():
            panels[0].set_ylim(-0.04, 1.04)
    figure.suptitle(subject(rows), fontsize=9)
    figure.legend(handles=_front_legend(table, style, wide > 1), loc="outside right center")
    return figure


def _front_legend(table: pd.DataFrame, style: Mapping[str, tuple], timed: bool) -> list[Line2D]:
    """The methods, and what filled, hollow and crossed points are."""
    handles = [
        Line2D([], [], color=look[0], marker=look[1], linestyle="none", label=name) for name, look in style.items()
    ]
    handles.append(Line2D([], [], color=BLACK, linewidth=1, label="front: nothing is better\nand not dearer"))
    handles.append(Line2D([], [], color=GREY, marker="o", markerfacecolor="none", linestyle="none", label="behind it"))
    handles += [] if table["complete"].all() else [incomplete_entry()]
    handles.append(Line2D([], [], color=GREY, linewidth=0.8, label="95% intervals"))
    if not timed:
        handles.append(Line2D([], [], linestyle="none", label="no steps of these cells\nwere timed alone"))
    return handles


def _points(axes, table: pd.DataFrame, cost: str, style: Mapping[str, tuple]) -> None:
    """Points with intervals, filled on the front and hollow behind it, and the front as a staircase.

    Leaking references and incomplete cells are on no front: the first are hollow, the second crossed too.
    """
    sign = -1 if "perplexity" in table else 1
    best = (table["complete"] & ~table["leaks"]).to_numpy(bool, copy=True)
    best[best] = front(table[best][cost].to_numpy(float), sign * table[best]["score"].to_numpy(float))
    for line, ahead in zip(table.itertuples(), best, strict=True):
        colour, marker, _ = style[line.method]
        face, place = colour if ahead else "white", getattr(line, cost)
        ends = [end if np.isfinite(end) else np.nan for end in (line.low, line.high)]
        axes.vlines(place, *ends, color=colour, linewidth=0.8, alpha=0.7, zorder=1)
        if not line.complete:
            mark_incomplete(axes, place, line.score, style[line.method])
            continue
        look = {"marker": marker, "markersize": 9 if line.reference else 6, "linestyle": "none", "clip_on": False}
        axes.plot(place, line.score, color=colour, markerfacecolor=face, zorder=3, **look)
    ahead = table[best].sort_values([cost, "score"])
    x, y = ahead[cost].to_numpy(float), ahead["score"].to_numpy(float)
    axes.plot(x, y, drawstyle="steps-post", color=BLACK, linewidth=1, zorder=2, label="front")
    if table[cost].min() < table[cost].max() / 2:
        axes.set_xlim(left=0, right=1.06 * table[cost].max())


def differences(rows: pd.DataFrame, compared: pd.DataFrame) -> Figure | None:
    """Paired differences to the full cache by size, a panel per method; filled where Holm's correction leaves them."""
    nll = "nll_difference" in compared
    name = "nll_difference" if nll else "difference"
    table = compared[compared[name].notna()]
    if table.empty:
        return None
    scale = 1 if nll or not rows["score"].dropna().astype(float).between(0, 1).all() else 100
    methods, style = list(table["method"].unique()), looks(rows["method"].unique())
    figure, panels = panels_of(len(methods), rows)
    for method, axes in zip(methods, panels, strict=True):
        cells = table[table["method"] == method].sort_values("kept_fraction")
        colour, marker, _ = style[method]
        x, y = 100 * cells[sizes.axis(table)].to_numpy(float), scale * cells[name].to_numpy(float)
        axes.axhline(0, color=BLACK, linewidth=1)
        axes.vlines(x, scale * cells[f"{name}_low"], scale * cells[f"{name}_high"], color=colour, linewidth=1.2)
        for place, value, p, whole in zip(x, y, cells["p_holm"], cells["complete"], strict=True):
            if not whole:
                mark_incomplete(axes, place, value, style[method])
                continue
            face, mark = (colour if p < ALPHA else "white", marker) if not np.isnan(p) else ("none", "_")
            axes.plot(place, value, marker=mark, color=colour, markerfacecolor=face, markersize=6, clip_on=False)
        axes.set(title=method, xlim=(0, 100))
        if nll:
            axes.set_yscale("symlog", linthresh=0.01)
    figure.supxlabel(sizes.label(table))
    points = metric(rows) + ", percentage points" * (scale == 100)
    unit = "NLL, nats per token (above: worse; linear below 0.01)" if nll else points
    figure.supylabel(f"minus the full cache:\n{unit}", fontsize=9)
    figure.legend(handles=_difference_legend(table, int(compared["p_holm"].notna().sum())), loc="outside right center")
    return figure


def _difference_legend(table: pd.DataFrame, number: int) -> list[Line2D]:
    """What filled, hollow and crossed points are, and how stars and intervals go together."""
    handles = [
        Line2D([], [], color=BLACK, marker="o", linestyle="none", label=f"differs (Holm, {number} tests, 5%)"),
        Line2D([], [], color=BLACK, marker="o", markerfacecolor="white", linestyle="none", label="not told apart"),
        Line2D([], [], color=BLACK, linewidth=1.2, label="95% interval, paired"),
        Line2D([], [], color=BLACK, linewidth=1, label="the full cache"),
    ]
    if table.loc[table["complete"], "p_holm"].isna().any():
        handles.append(Line2D([], [], color=BLACK, marker="_", linestyle="none", label="too few clusters for a test"))
    handles += [] if table["complete"].all() else [incomplete_entry()]
    return [*handles, Line2D([], [], linestyle="none", label=fill(HOLM_NOTE, 30))]
