"""Pictures of one run, functions of its rows alone: the same rows give the same bytes.

    run_figures.draw(load_table("results/default/0123456789ab"), Path("figures"))

Sizes are measured, never the ones asked for. What has no value (out of reach, failed, not measured) is marked as such,
so that nobody takes it for a zero; what has values of some samples only is hollow, with a cross in it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text

from pvcbench.plots import drawn_from, published
from pvcbench.plots.many_methods import curves_of_many, too_many
from pvcbench.plots.needle import needle_grid, needle_survival, survival_accuracy
from pvcbench.plots.style import (
    BLACK,
    DOTTED,
    STYLE,
    asked,
    budgets_of,
    incomplete_entry,
    looks,
    mark_incomplete,
    metric,
    panels_of,
    subject,
)
from pvcbench.stats import floor, perplexity, ranking, sizes, summaries
from pvcbench.stats.failures import reach


def pictures(rows: pd.DataFrame) -> Iterator[tuple[str, Figure | None]]:
    """The figures of one run by name; None where its rows have nothing to show of it."""
    scored = rows[rows["method"].notna()]
    yield from ((make.__name__, make(scored)) for make in FIGURES if len(scored))


def draw(rows: pd.DataFrame, folder: Path) -> list[Path]:
    """Draws every figure that the rows of one run allow, as PNG and SVG, and returns the paths."""
    return save(lambda: pictures(rows), folder, drawn_from.data_of(rows))


def save(
    make: Callable[[], Iterable[tuple[str, Figure | None]]], folder: Path, data: str, sources: Sequence[str] = ()
) -> list[Path]:
    """Writes figures by name, in our style; those that are None have nothing to show.

    `data` is the hash of what they are drawn from, which every file carries; `sources` names JSON files beside the
    folder that they show instead of rows.
    """
    paths = []
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        for name, figure in make():
            if figure is not None:
                _literal(figure)
                folder.mkdir(parents=True, exist_ok=True)
                for ending in ("png", "svg"):
                    paths.append(folder / f"{name}.{ending}")
                    figure.savefig(paths[-1], dpi=160, metadata=drawn_from.metadata(ending, data))
    if paths:
        drawn_from.record(folder, paths, sources)
    return paths


def _literal(figure: Figure) -> None:
    """Keeps names that hold dollar signs from being read as formulas; the axes' own powers of ten stay."""
    for text in figure.findobj(Text):
        if "$" in text.get_text() and r"\mathdefault" not in text.get_text():
            text.set_parse_math(False)


def curve(rows: pd.DataFrame) -> Figure | None:
    """Score against measured cache size, one line per method, the full cache as a reference."""
    table = perplexity.shown(rows)
    scored, style = table[table["score"].notna()], looks(rows["method"].unique())
    if scored.empty:
        return None
    label = "perplexity (lower is better)" if "perplexity" in table else metric(rows)
    if too_many(rows):
        best = "lowest" if "perplexity" in table else "highest"
        return curves_of_many(rows, table, ("score", "low", "high"), label, best)
    figure = Figure(figsize=(8.4, 4.4), layout="constrained")
    axes = figure.add_subplot(xlim=(0, 100), xlabel=sizes.label(table), ylabel=label)
    axes.set_title(subject(rows))
    if "perplexity" in table:
        axes.set_yscale("log" if scored["score"].max() > 4 * scored["score"].min() else "linear")
    elif scored["score"].between(0, 1).all():
        axes.set_ylim(-0.04, 1.04)
    handles, size = [], 5 + table["method"].nunique()  # shrinking, so that equal points show behind each other
    for name, cells in table.groupby("method", sort=False):
        points = cells[cells["score"].notna()]
        if cells["reference"].any():
            handles += [_level(axes, line, style[name]) for line in points.itertuples()]
        else:
            size -= 1
            handles += [_line(axes, name, points, style[name], size, sizes.axis(table))]
            handles += _absences(axes, name, cells, table, (*style[name], size))
    handles += published.mark(axes, rows, style)
    full_size_axis(axes, scored)
    handles += [incomplete_entry()] if (~scored["complete"]).any() else []
    figure.legend(handles=[*handles, Patch(color="#DDDDDD", label="95% intervals")], loc="outside right upper")
    return figure


def _level(axes, line, look: tuple) -> Line2D:
    """The full cache across a panel, and its legend entry."""
    colour, _, dashes = look
    axes.axhline(line.score, color=colour, linestyle=dashes, linewidth=1.2, label=line.method)
    axes.axhspan(line.low, line.high, color=colour, alpha=0.07, linewidth=0)
    lost = "" if line.complete else f", {line.samples} of {line.asked} samples"
    return Line2D([], [], color=colour, linestyle=dashes, label=f"{line.method} cache, {line.mib:.1f} MiB{lost}")


def _line(axes, name: str, points: pd.DataFrame, look: tuple, size: int, measure: str) -> Line2D:
    """One method's points with their intervals, those of some samples only hollow, and its legend entry."""
    colour, marker, line = look
    points = points.sort_values(measure)
    x, score, low, high = (points[key].astype(float) for key in (measure, "score", "low", "high"))
    low, high = low.where(np.isfinite(low)), high.where(np.isfinite(high))  # what has no bound is marked as incomplete
    same = {"color": colour, "linestyle": line, "marker": marker, "markersize": size, "label": name}
    axes.fill_between(100 * x, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.vlines(100 * x, low, high, color=colour, linewidth=0.7, alpha=0.5)
    axes.plot(100 * x, score, clip_on=False, zorder=3, markeredgecolor="white", markeredgewidth=0.6, **same)
    for place, value in zip(x[~points["complete"]], score[~points["complete"]], strict=True):
        mark_incomplete(axes, 100 * place, value, look, size)
    return Line2D([], [], **same)


def _absences(axes, name: str, cells: pd.DataFrame, table: pd.DataFrame, look: tuple) -> list[Line2D]:
    """Marks where a method's curve has to end, and returns legend entries for all that has no score."""
    handles, end, (colour, *_, size) = [], reach(cells), look
    known = cells[cells["complete"]].sort_values(measure := sizes.axis(table))
    if end is not None:
        place = 100 * sizes.placed(table, end / 100)
        axes.axvline(place, color=colour, linewidth=0.9, linestyle=DOTTED, zorder=1, label=f"{name}: reach")
        ring = {"marker": "o", "markersize": size + 6, "markerfacecolor": "none", "color": colour}
        first = known.head(1)
        axes.plot(100 * first[measure], first["score"], clip_on=False, label=f"{name}: smallest", **ring)
        label = f"{name}: reach {place:.0f}%, nothing smaller"
        handles.append(Line2D([], [], linestyle=DOTTED, linewidth=0.9, label=label, **ring))
    failed = ~cells["complete"] & ((cells["samples"] > 0) | cells["reach"].isna())
    for cell in cells[failed].itertuples():
        lost = f"{name} at {asked(cell.budget)}: no score for {cell.asked - cell.samples} of {cell.asked}"
        handles.append(Line2D([], [], linestyle="none", label=lost))
    return handles


def full_size_axis(axes, scored: pd.DataFrame) -> None:
    """A second axis on top in MiB of KV cache: the line through the measured sizes, where they lie on one."""
    scored = scored[scored["complete"]] if scored["complete"].any() else scored  # cells of the same prompts
    fraction, mib = 100 * scored[sizes.axis(scored)].to_numpy(float), scored["mib"].to_numpy(float)
    slope, start = np.polyfit(fraction, mib, 1) if np.ptp(fraction) > 0 else (mib[0] / fraction[0], 0.0)
    if slope > 0 and np.abs(start + slope * fraction - mib).max() < 0.03 * mib.max():
        top = axes.secondary_xaxis("top", functions=(lambda x: start + slope * x, lambda y: (y - start) / slope))
        top.set_xlabel("KV cache, MiB")


def curves_by_part(rows: pd.DataFrame) -> Figure | None:
    """The curve of every group of data sets, or of every set where there are no groups: a panel each."""
    if "stratum" not in rows or rows["stratum"].nunique() < 2:
        return None
    table, style = summaries.breakdown(rows), looks(rows["method"].unique())
    kind = next(kind for kind in ("group", "set") if (table["kind"] == kind).any())
    table = table[(table["kind"] == kind) & table["score"].notna()]
    figure, panels = panels_of(table["part"].nunique(), rows)
    floors = {name: f" (full answers {counts})" for name, counts in floor.sets(rows).items()}
    for (part, cells), axes in zip(table.groupby("part", sort=False), panels, strict=True):
        axes.set(title=part + floors.get(str(part), ""), xlim=(0, 100))
        if table["score"].between(0, 1).all():
            axes.set_ylim(-0.04, 1.04)
        for name, points in cells.groupby("method", sort=False):
            colour, marker, line = style[name]
            score, low, high = (points[key].to_numpy(float) for key in ("score", "low", "high"))
            if points["reference"].any():
                axes.axhline(score[0], color=colour, linestyle=line, linewidth=1.2, label=name)
                axes.axhspan(low[0], high[0], color=colour, alpha=0.07, linewidth=0)
                continue
            x = 100 * points[sizes.axis(table)].to_numpy(float)
            axes.errorbar(x, score, np.maximum(0, [score - low, high - score]), fmt="none", ecolor=colour, alpha=0.5)
            axes.plot(x, score, color=colour, linestyle=line, marker=marker, markersize=4, label=name, clip_on=False)
            for place in np.flatnonzero(~points["complete"]):
                mark_incomplete(axes, x[place], score[place], style[name], 4)
    figure.supxlabel(sizes.label(table))
    figure.supylabel(metric(rows))
    _one_legend(figure, panels, [] if table["complete"].all() else [incomplete_entry()])
    return figure


def likelihood_by_position(rows: pd.DataFrame) -> Figure | None:
    """Mean NLL against position in the document: a panel per budget, a line per method, the full cache in each.

    A panel is of the documents that all of its cells have likelihoods of.
    """
    known, style = perplexity.scored(rows), looks(rows["method"].unique())
    some = set(known[~known["reference"].astype(bool)]["budget"])
    budgets = [budget for budget in budgets_of(rows) if budget in some]
    if not budgets:
        return None
    figure, panels = panels_of(len(budgets), rows)
    for budget, axes in zip(budgets, panels, strict=True):
        own = known[(known["budget"] == budget) | known["reference"].astype(bool)]
        same = ranking.shared(own)
        here, there = same["sample"].nunique(), own["sample"].nunique()
        axes.set_title(f"asked {asked(budget)}" + (f", {here} of {there} documents" if here < there else ""))
        table = perplexity.by_position(same)
        for name, points in table.groupby("method", sort=False):
            colour, _, line = style[name]
            axes.plot(points["position"], points["nll"], color=colour, linestyle=line, linewidth=1.2, label=name)
        entries = same[same["budget"] == budget]["budget_entries"].dropna()
        if len(entries) and entries.min() > table["position"].min():
            axes.axvline(entries.mean(), color=BLACK, linestyle=DOTTED, linewidth=0.9, label="budget full")
    figure.supxlabel("position in the document, tokens")
    figure.supylabel(f"NLL, nats per token\n(means of {perplexity.block_of(rows)} tokens)")
    _one_legend(figure, panels)
    return figure


def likelihood_cost(rows: pd.DataFrame) -> Figure | None:
    """What a smaller cache costs in NLL: paired differences, which show what documents' own differences hide."""
    table = perplexity.shown(rows)
    if "nll_difference" not in table or table["nll_difference"].isna().all():
        return None
    label = "NLL minus the full cache's, nats per token\n(paired by document; linear below 0.01)"
    scale = {"value": "symlog", "linthresh": 0.01}
    if too_many(rows):
        ends = ("nll_difference", "nll_difference_low", "nll_difference_high")
        return curves_of_many(rows, table, ends, label, "lowest", scale)
    figure, style = Figure(figsize=(8.4, 4.4), layout="constrained"), looks(rows["method"].unique())
    axes = figure.add_subplot(xlim=(0, 100), xlabel=sizes.label(table), ylabel=label)
    axes.set_title(subject(rows))
    measure = sizes.axis(table)
    axes.axhline(0, color=BLACK, linestyle=style["full"][2] if "full" in style else DOTTED, linewidth=1.2, label="full")
    table = table[table["nll_difference"].notna()].sort_values(measure)
    for name, cells in table.groupby("method"):
        colour, marker, line = style[name]
        x, mean = 100 * cells[measure].to_numpy(float), cells["nll_difference"].to_numpy(float)
        ends = np.abs(cells[["nll_difference_low", "nll_difference_high"]].to_numpy(float).T - mean)
        axes.errorbar(x, mean, ends, color=colour, linestyle=line, marker=marker, markersize=4, capsize=2, label=name)
        for place in np.flatnonzero(~cells["complete"]):
            mark_incomplete(axes, x[place], mean[place], style[name], 4)
    axes.set_yscale(**scale)
    handles = axes.get_legend_handles_labels()[0] + ([] if table["complete"].all() else [incomplete_entry()])
    figure.legend(handles=handles, title="95% intervals", loc="outside right upper")
    return figure


def _one_legend(figure: Figure, panels: list, more: Sequence[Line2D] = ()) -> None:
    """One legend for all panels; the figure grows where it is taller."""
    found = [handle for axes in panels for handle in axes.get_legend_handles_labels()[0]]
    handles = {handle.get_label(): handle for handle in [*found, *more]}
    figure.set_figheight(max(figure.get_figheight(), 0.3 + 0.2 * len(handles)))
    figure.legend(list(handles.values()), list(handles), loc="outside right upper")


FIGURES = (
    curve,
    curves_by_part,
    likelihood_cost,
    likelihood_by_position,
    needle_grid,
    needle_survival,
    survival_accuracy,
)
