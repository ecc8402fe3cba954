"""Figures over all runs of an experiment: the Pareto front by bytes and time, and differences to the full cache.

Rows of several seeds may be joined; `compared` is `significance.compared` of them.
"""

from collections.abc import Mapping
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Transform

from pvcbench.plots.canvas import ASIDE, WIDTH, apart, beside, fit, head, interval_entry, panels_of, step_of
from pvcbench.plots.many_methods import MANY, dots, too_many
from pvcbench.plots.style import (
    BLACK,
    GREY,
    HOLM_NOTE,
    asked,
    incomplete_entry,
    looks,
    mark_incomplete,
    methods_of,
    metric,
    ordered,
    score_label,
    subject,
    told,
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

    Sizes are shares of the full cache's bytes on the same samples; without a full cache they are bytes. Points of one
    size stand beside each other. Of many methods those that are nowhere on the front are grey and have no name.
    """
    table = compared[compared["score"].notna()].merge(times, on=["method", "budget"], how="left")
    table = table.assign(leaks=table["leaks"] | table["method"].isin(ranking.leaking(rows)))
    timed = table[table[STEP].notna()]
    wide = 1 + (len(timed) > 1)
    style = looks(rows["method"].unique())
    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    panels = figure.subplots(1, wide, squeeze=False, sharey=True)[0]
    if "perplexity" in table:
        panels[0].set_ylabel("perplexity (lower is better)")
        panels[0].set_yscale("log" if table["score"].max() > 4 * table["score"].min() else "linear")
    else:
        panels[0].set_ylabel(score_label(rows))
    fit(panels[0], table)
    share = sizes.axis(table) == "kept_bytes"
    label = sizes.label(table).replace(": ", ":\n") if share else "KV cache, MiB (measured)"
    size = 100 * table["kept_bytes"] if share else table["mib"]
    _points(panels[0], table.assign(size=size), "size", style, WIDTH / wide - 0.8)
    panels[0].set(xlabel=f"{label}\n({ASIDE})" if len(methods_of(table)) > 1 else label)
    if wide > 1:
        panels[1].hlines(timed["score"], timed["least"], timed["most"], color=GREY, linewidth=0.8, zorder=1)
        _points(panels[1], timed, STEP, style, 0)
        panels[1].xaxis.set_major_locator(MaxNLocator(5))
        panels[1].set(xlabel=f"a decoding step, ms (grey: smallest to largest)\n{timed['setting'].iloc[0]}")
    head(figure, subject(rows), _front_legend(rows, table, style, wide > 1))
    return figure


def _front_legend(rows: pd.DataFrame, table: pd.DataFrame, style: Mapping[str, tuple], timed: bool) -> list[Line2D]:
    """The methods, and what filled, hollow and crossed points are."""
    look = {"linestyle": "none", "marker": "o"}
    names = [] if too_many(rows) else ordered(table["method"], ranking.leaking(rows))
    handles = [Line2D([], [], color=style[n][0], marker=style[n][1], linestyle="none", label=told(n)) for n in names]
    handles += [Line2D([], [], color=BLACK, linewidth=1, marker="o", label="front: nothing as small is better")]
    handles += [Line2D([], [], color=GREY, markerfacecolor="white", label="behind the front", **look)]
    handles += [] if table["complete"].all() else [incomplete_entry()]
    handles.append(interval_entry())
    if not timed:
        handles.append(Line2D([], [], linestyle="none", label="no steps of these cells were timed alone"))
    return handles


def _points(axes, table: pd.DataFrame, cost: str, style: Mapping[str, tuple], width: float) -> None:
    """Points with intervals, filled on the front and hollow behind it, and the front as a staircase.

    Leaking references and incomplete cells are on no front: the first are hollow, the second crossed too. In a panel
    `width` inches wide (0: none is moved) points of one cost stand beside each other, by method.
    """
    sign = -1 if "perplexity" in table else 1
    best = (table["complete"] & ~table["leaks"]).to_numpy(bool, copy=True)
    best[best] = front(table[best][cost].to_numpy(float), sign * table[best]["score"].to_numpy(float))
    names, most = methods_of(table), 1.06 * table[cost].max()
    grey = set(names) - set(table[best]["method"]) if len(names) > MANY else set()
    names = [name for name in names if name not in grey]
    step = step_of(table[~table["reference"].astype(bool)][cost], len(names), width, most)
    moved = {name: beside(axes, number, len(names), step) for number, name in enumerate(names)}
    for line, ahead in zip(table.itertuples(), best, strict=True):
        look = ("#C4C4C4", "o", "") if line.method in grey else style[line.method]
        where = axes.transData if line.reference else moved.get(line.method, axes.transData)
        ends = [end if np.isfinite(end) else np.nan for end in (line.low, line.high)]
        if line.method not in grey:
            axes.vlines(getattr(line, cost), *ends, color=look[0], linewidth=1, zorder=1, transform=where)
        _point(axes, getattr(line, cost), line, look, ahead, where)
    ahead = table[best].sort_values([cost, "score"])
    x, y = ahead[cost].to_numpy(float), ahead["score"].to_numpy(float)
    axes.plot(x, y, drawstyle="steps-post", color=BLACK, linewidth=1, zorder=2, label="front")
    if table[cost].min() < table[cost].max() / 2:
        axes.set_xlim(left=0, right=most)
    _names(axes, table, table[best], cost, style)


def _point(axes, x: float, line, look: tuple, ahead: bool, where: Transform) -> None:
    """One cell: filled on the front, hollow behind it, crossed where it is incomplete."""
    colour, marker, _ = look
    if not line.complete:
        mark_incomplete(axes, x, line.score, look, transform=where)
        return
    size = 10 if line.reference else 3.5 if colour == "#C4C4C4" else 6
    same = {"markersize": size, "linestyle": "none", "clip_on": False, "zorder": 3, "transform": where}
    axes.plot(x, line.score, color=colour, marker=marker, markerfacecolor=colour if ahead else "white", **same)


def _names(axes, table: pd.DataFrame, front: pd.DataFrame, cost: str, style: Mapping[str, tuple]) -> None:
    """Names at the points: in a panel of times all cells', with their sizes; of many methods the front's.

    Few methods on an axis of sizes need none: a legend has them, and each has a point at every size.
    """
    if cost != STEP and len(methods_of(table)) <= MANY:
        return
    shown = (
        table
        if cost == STEP and len(methods_of(table)) <= MANY
        else pd.concat([front, table[table["reference"].astype(bool)]]).drop_duplicates(["method", "budget"])
    )
    (low, high), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    linear = axes.get_yscale() == "linear"
    heights = apart(list(shown["score"]), 0.05 * (top - bottom)) if linear else list(shown["score"])
    near = 0.08 * (high - low)
    for line, height in zip(shown.itertuples(), heights, strict=True):
        at, sideways = getattr(line, cost), -1 if getattr(line, cost) > (low + high) / 2 else 1
        at += sideways * max(sideways * (shown[cost] - at)[(shown[cost] - at).abs() < near])  # clear of neighbours
        text = told(line.method) if line.reference or cost != STEP else f"{line.method} {asked(line.budget)}"
        below = linear and height > top - 0.1 * (top - bottom)
        look = {"ha": "left" if sideways > 0 else "right", "va": "top" if below else "bottom", "fontsize": 8}
        move = (7 * sideways, -3 if below else 3)
        look["bbox"] = {"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.3}
        axes.annotate(text, (at, height), move, textcoords="offset points", color=style[line.method][0], **look)


def differences(rows: pd.DataFrame, compared: pd.DataFrame) -> Figure | None:
    """Paired differences to the full cache by size, a panel per method; filled where Holm's correction leaves them."""
    nll = "nll_difference" in compared
    name = "nll_difference" if nll else "difference"
    table = compared[compared[name].notna()]
    if table.empty:
        return None
    scale = 1 if nll or not rows["score"].dropna().astype(float).between(0, 1).all() else 100
    points = metric(rows) + ", percentage points" * (scale == 100)
    unit = "negative log-likelihood, nats per token (more: worse; linear below 0.01)" if nll else points
    if too_many(rows):
        ends = [name, f"{name}_low", f"{name}_high"]
        scaled = compared.assign(**{end: scale * compared[end].astype(float) for end in ends})
        linear = {"value": "symlog", "linthresh": 0.01} if nll else None
        return dots(rows, scaled, ends, f"minus the full cache: {unit}", "lowest" if nll else "highest", linear)
    methods, style = methods_of(table), looks(rows["method"].unique())
    figure, panels = panels_of(len(methods), rows, _difference_legend(table, int(compared["p_holm"].notna().sum())))
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
    figure.supxlabel(f"{sizes.label(table)}\n{fill(HOLM_NOTE, 110)}", fontsize=8)
    figure.supylabel(f"minus the full cache:\n{unit}", fontsize=9)
    return figure


def _difference_legend(table: pd.DataFrame, number: int) -> list[Line2D]:
    """What filled, hollow and crossed points are."""
    handles = [
        Line2D([], [], color=BLACK, marker="o", linestyle="none", label=f"differs (Holm, {number} tests, 5%)"),
        Line2D([], [], color=BLACK, marker="o", markerfacecolor="white", linestyle="none", label="not told apart"),
        interval_entry("95% interval, paired"),
        Line2D([], [], color=BLACK, linewidth=1, label="the full cache"),
    ]
    if table.loc[table["complete"], "p_holm"].isna().any():
        handles.append(Line2D([], [], color=BLACK, marker="_", linestyle="none", label="too few clusters for a test"))
    return handles + ([] if table["complete"].all() else [incomplete_entry()])
