"""Pictures of one run, functions of its rows alone: the same rows give the same bytes.

    run_figures.draw(load_table("results/default/0123456789ab"), Path("figures"))

Sizes are measured, never the ones asked for. What has no value (out of reach, failed, not measured) is marked as such,
so that nobody takes it for a zero; what has values of some samples only is hollow, with a cross in it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import Transform

from pvcbench.plots import drawn_from, published
from pvcbench.plots.canvas import ASIDE, WIDTH, beside, fit, head, interval_entry, panels_of, show_all, step_of
from pvcbench.plots.many_methods import dots, too_many
from pvcbench.plots.needle import needle_grid, needle_survival, survival_accuracy
from pvcbench.plots.style import (
    BLACK,
    DASHED,
    DOTTED,
    STYLE,
    asked,
    budgets_of,
    entry,
    incomplete_entry,
    looks,
    mark_incomplete,
    methods_of,
    ordered,
    score_label,
    subject,
)
from pvcbench.plots.turns import curve_by_turn
from pvcbench.stats import floor, perplexity, ranking, sizes, summaries
from pvcbench.stats.failures import reach


def pictures(rows: pd.DataFrame) -> Iterator[tuple[str, Figure | None]]:
    """The figures of one run by name; None where its rows have nothing to show of it."""
    scored = rows[rows["method"].notna()]
    if len(scored):
        table = perplexity.shown(scored)  # once for all that show it
        yield "curve", curve(scored, table)
        yield "curves_by_part", curves_by_part(scored)
        yield "likelihood_cost", likelihood_cost(scored, table)
        yield from ((make.__name__, make(scored)) for make in OF_ROWS)


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
                    figure.set_layout_engine("none")  # the places are found: the second format has the same
    if paths:
        drawn_from.record(folder, paths, sources)
    return paths


def _literal(figure: Figure) -> None:
    """Keeps names that hold dollar signs from being read as formulas; the axes' own powers of ten stay."""
    for text in figure.findobj(Text):
        if "$" in text.get_text() and r"\mathdefault" not in text.get_text():
            text.set_parse_math(False)


def curve(rows: pd.DataFrame, table: pd.DataFrame | None = None) -> Figure | None:
    """Score against measured cache size, one line per method, the full cache as a reference.

    `table` is the run's summary as people read it, where it is known. Marks of one size stand beside each other.
    """
    table = perplexity.shown(rows) if table is None else table
    scored, style = table[table["score"].notna()], looks(rows["method"].unique())
    if scored.empty:
        return None
    label = "perplexity (lower is better)" if "perplexity" in table else score_label(rows)
    if too_many(rows):
        best = "lowest" if "perplexity" in table else "highest"
        return dots(rows, table, ("score", "low", "high"), label, best)
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axes = figure.add_subplot(xlim=(0, 100), xlabel=sizes.label(table), ylabel=label)
    if "perplexity" in table:
        axes.set_yscale("log" if scored["score"].max() > 4 * scored["score"].min() else "linear")
    fit(axes, scored)
    full = scored[scored["reference"].astype(bool)]
    handles = [_level(axes, line, style[line.method]) for line in full.itertuples()]
    names, absent = methods_of(table), []
    moved = places(axes, scored, names)
    if len(moved) > 1:
        axes.set_xlabel(f"{sizes.label(table)} ({ASIDE})")
    for name, where in moved.items():
        cells = table[table["method"] == name]
        handles.append(_line(axes, name, cells[cells["score"].notna()], style[name], where, sizes.axis(table)))
        absent += _absences(axes, name, cells, table, style[name][0])
    handles += [interval_entry(), *absent, *published.mark(axes, rows, style)]
    full_size_axis(axes, scored)
    handles += [incomplete_entry()] if (~scored["complete"]).any() else []
    head(figure, subject(rows), handles)
    return figure


def places(axes, scored: pd.DataFrame, names: Sequence[str]) -> dict[str, Transform]:
    """Where each method's marks stand: at the measured size, moved by a few points beside those of the others."""
    known = scored[~scored["reference"].astype(bool)]
    names = [name for name in names if name in set(known["method"])]
    step = step_of(100 * known[sizes.axis(scored)].astype(float), len(names), WIDTH - 1)
    return {name: beside(axes, number, len(names), step) for number, name in enumerate(names)}


def _level(axes, line, look: tuple) -> Line2D:
    """The full cache across a panel, and its legend entry."""
    colour, _, dashes = look
    axes.axhline(line.score, color=colour, linestyle=dashes, linewidth=1.2, label=line.method)
    axes.axhspan(line.low, line.high, color=colour, alpha=0.07, linewidth=0)
    lost = "" if line.complete else f", {line.samples} of {line.asked} samples"
    return Line2D([], [], color=colour, linestyle=dashes, label=f"{line.method} cache, {line.mib:.1f} MiB{lost}")


def _line(axes, name: str, points: pd.DataFrame, look: tuple, where: Transform, measure: str) -> Line2D:
    """One method's points with their intervals, those of some samples only hollow, and its legend entry."""
    colour, marker, line = look
    points = points.sort_values(measure)
    x, score, low, high = (points[key].to_numpy(float) for key in (measure, "score", "low", "high"))
    low, high = (np.where(np.isfinite(end), end, np.nan) for end in (low, high))  # no bound: marked as incomplete
    same = {"color": colour, "linestyle": line, "marker": marker, "markersize": 6, "label": name, "linewidth": 1.2}
    axes.vlines(100 * x, low, high, color=colour, linewidth=1.3, alpha=0.8, transform=where)
    axes.plot(100 * x, score, clip_on=False, zorder=3, markeredgecolor="white", transform=where, **same)
    for place in np.flatnonzero(~points["complete"]):
        mark_incomplete(axes, 100 * x[place], score[place], look, transform=where)
    return Line2D([], [], **same)


def _absences(axes, name: str, cells: pd.DataFrame, table: pd.DataFrame, colour: str) -> list[Line2D]:
    """Marks where a method's curve has to end, and returns legend entries for what failed."""
    handles, end = [], reach(cells)
    if end is not None:
        place = 100 * sizes.placed(table, end / 100)
        axes.axvline(place, color=colour, linewidth=0.9, linestyle=DOTTED, zorder=1, label=f"{name}: reach")
        look = {"transform": axes.get_xaxis_transform(), "color": colour, "fontsize": 8, "rotation": 90}
        look["bbox"] = {"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.5}
        axes.text(place - 0.5, 0.83, f"{name} ends at {place:.0f}%", ha="right", va="top", **look)
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
    handles = [entry(name, style[name]) for name in ordered(table["method"], ranking.leaking(rows))]
    handles += [interval_entry()] + ([] if table["complete"].all() else [incomplete_entry()])
    figure, panels = panels_of(table["part"].nunique(), rows, handles)
    floors = {name: f" (full answers {counts})" for name, counts in floor.sets(rows).items()}
    for (part, cells), axes in zip(table.groupby("part", sort=False), panels, strict=True):
        axes.set(title=part + floors.get(str(part), ""), xlim=(0, 100))
        fit(axes, table)
        _part(axes, cells, style, sizes.axis(table))
    figure.supxlabel(sizes.label(table), fontsize=9)
    figure.supylabel(score_label(rows), fontsize=9)
    return figure


def _part(axes, cells: pd.DataFrame, style: Mapping[str, tuple], measure: str) -> None:
    """The curves of one data set or group."""
    for full in cells[cells["reference"].astype(bool)].itertuples():
        _level(axes, full, style[full.method])
    names = methods_of(cells)
    for number, name in enumerate(names):
        where = beside(axes, number, len(names), min(3.0, 15 / len(names)))
        _line(axes, name, cells[cells["method"] == name], style[name], where, measure)


def likelihood_by_position(rows: pd.DataFrame) -> Figure | None:
    """Mean NLL against position in the document: a panel per budget, a line per method, the full cache in each.

    A panel is of the documents that all of its cells have likelihoods of.
    """
    known, style = perplexity.scored(rows), looks(rows["method"].unique())
    some = set(known[~known["reference"].astype(bool)]["budget"])
    budgets = [budget for budget in budgets_of(rows) if budget in some]
    if not budgets:
        return None
    handles = [entry(name, style[name], False) for name in ordered(known["method"], ranking.leaking(rows))]
    handles.append(Line2D([], [], color=BLACK, linestyle=DOTTED, linewidth=0.9, label="the budget is full from here"))
    figure, panels = panels_of(len(budgets), rows, handles)
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
    figure.supxlabel("position in the document, tokens", fontsize=9)
    of = f"means of {perplexity.block_of(rows)} tokens"
    figure.supylabel(f"negative log-likelihood, nats per token\n({of})", fontsize=9)
    return figure


def likelihood_cost(rows: pd.DataFrame, table: pd.DataFrame | None = None) -> Figure | None:
    """What a smaller cache costs in NLL: paired differences, which show what documents' own differences hide."""
    table = perplexity.shown(rows) if table is None else table
    if "nll_difference" not in table or table["nll_difference"].isna().all():
        return None
    label = "negative log-likelihood minus the full cache's, nats per token\n(paired by document; linear below 0.01)"
    scale = {"value": "symlog", "linthresh": 0.01}
    ends = ("nll_difference", "nll_difference_low", "nll_difference_high")
    if too_many(rows):
        return dots(rows, table, ends, label, "lowest", scale)
    figure, style = Figure(figsize=(WIDTH, 4.2), layout="constrained"), looks(rows["method"].unique())
    axes = figure.add_subplot(xlim=(0, 100), xlabel=sizes.label(table), ylabel=label.replace(" minus", "\nminus", 1))
    axes.axhline(0, color=BLACK, linestyle=DASHED, linewidth=1.2, label="full")
    handles = [Line2D([], [], color=BLACK, linestyle=DASHED, linewidth=1.2, label="full cache")]
    known = table[table["nll_difference"].notna()].drop(columns=["score", "low", "high"])
    known = known.rename(columns=dict(zip(ends, ("score", "low", "high"), strict=True)))
    for name, where in places(axes, known, methods_of(known)).items():
        own = known[known["method"] == name]
        handles.append(_line(axes, name, own, style[name], where, sizes.axis(table)))
    axes.set_yscale(**scale)
    show_all(axes, [0], known["score"], known["low"], known["high"])
    handles += [interval_entry()] + ([] if known["complete"].all() else [incomplete_entry()])
    head(figure, subject(rows), handles)
    return figure


OF_ROWS = (likelihood_by_position, curve_by_turn, needle_grid, needle_survival, survival_accuracy)
