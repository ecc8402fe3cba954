"""The table at the end of a run, for people."""

import math
from collections.abc import Sequence
from functools import partial

import pandas as pd
from rich.console import Console
from rich.table import Table

from pvcbench import analyses
from pvcbench.cli import closing
from pvcbench.plots import cautions
from pvcbench.plots.style import metric
from pvcbench.report.markdown_latex import sizes_of
from pvcbench.report.numbers import interval, number, scale_of
from pvcbench.runs.result import Result
from pvcbench.runs.rows import shown_rows
from pvcbench.stats import drawn_answers, floor
from pvcbench.stats.summaries import FEWEST_CLUSTERS, headline

LEGEND = "bytes kept: share of the full cache's bytes on the same samples; entries kept: in the layers that evict."


def scores(line, scale: float, digits: int, hidden: bool) -> list[str]:
    """Score and difference to full, with intervals; `hidden` at the floor, where a difference of none says nothing."""
    style, ends = (scale, digits), (line.difference_low, line.difference_high)
    told = [number(line.difference, *style, True), interval(*ends, *style, sign=True)]
    if hidden and floor.unseen(line.difference, *ends):
        told = [floor.WORD, ""]
    return [number(line.score, *style), interval(line.low, line.high, *style), *told]


def likelihoods(line) -> list[str]:
    """Perplexity, bits per byte and what the method costs in NLL after the budget's position, with intervals."""
    after = interval(line.after_difference_low, line.after_difference_high, 1, 3, True)
    return [
        number(line.perplexity, 1, 2),
        interval(line.perplexity_low, line.perplexity_high, 1, 2),
        number(line.bits_per_byte, 1, 4),
        interval(line.bits_per_byte_low, line.bits_per_byte_high, 1, 4),
        number(line.after_difference, 1, 3, True),
        after,
    ]


def clusters_of(rows) -> int:
    """The fewest clusters of any data set that the overall score is made of."""
    rows = headline(rows[rows["error"].isna()])
    return int(rows.groupby("stratum")["cluster"].nunique().min()) if len(rows) else 0


def main_table(result: Result) -> tuple[Table, list[str]]:
    """The summary of a run, a line per method and budget, and notes on what has no value."""
    rows, summary, at_floor = result.rows, result.summary, floor.sentence(result.rows)
    title = f"{rows['task'].iloc[0]}, {rows['model'].iloc[0]}: 95% intervals"
    if "perplexity" in summary:
        heads = ["perplexity", "interval", "bits/byte", "interval", "NLL - full after B", "interval"]
        values = likelihoods
        for name in ("after_difference", "after_difference_low", "after_difference_high"):
            summary = summary if name in summary else summary.assign(**{name: math.nan})
    else:
        heads, (scale, digits) = [metric(rows), "interval", "minus full", "interval"], scale_of(rows)
        values = partial(scores, scale=scale, digits=digits, hidden=at_floor is not None)
        title += ", per cent" if scale == 100 else ""
    table, notes = Table(title=title if at_floor is None else f"{title}\n{at_floor}"), []
    for name in ("method", "asked", "bytes kept", "entries kept", "MiB", "n", *heads):
        table.add_column(name, justify="left" if name in ("method", "asked") else "right")
    for line in summary.itertuples():
        if not line.samples:
            table.add_row(line.method, line.budget, "-", "-", "-", "0", "-", *[""] * (len(heads) - 1))
            notes.append(f"{line.method} at {line.budget}: {line.error}")
            continue
        table.add_row(line.method, line.budget, *measured(line), *values(line))
    notes += cautions.of(rows, summary)[len(cautions.loud(rows)) :]
    fewest, scored = clusters_of(rows), summary[summary["samples"] > 0]
    if fewest < FEWEST_CLUSTERS and ("low" not in scored or scored["low"].isna().any()):
        notes.append(
            f"Fewer than ten clusters ({fewest}{' in a data set' if rows['stratum'].nunique() > 1 else ''}): "
            "no intervals of means over clusters."
        )
    return table, [*notes, LEGEND]


def measured(line) -> list[str]:
    """Both measured shares of a cell, its bytes and its samples."""
    shares = sizes_of(line)
    return [text + "%" * (name.endswith("%") and text != "-") for name, text in shares.items()]


def frame_tables(result: Result) -> list[Table]:
    """The summary of an analysis as it is, a table for each group of samples."""
    rows, summary, tables = result.rows, result.summary, []
    told = analyses.reporter(rows).intervals
    for group, lines in summary.groupby("samples", sort=False) if len(summary) else ():
        what = f"{rows['task'].iloc[0]}, {rows['model'].iloc[0]}, {group}"
        table = Table(title=f"{what}: {told}")
        shown = lines.drop(columns="samples")
        for name in shown.columns:
            right = pd.api.types.is_numeric_dtype(shown[name])
            table.add_column(str(name).replace("_", " "), justify="right" if right else "left")
        for line in shown.itertuples(index=False):
            table.add_row(*("" if pd.isna(value) else _cell(value) for value in line))
        tables.append(table)
    return tables


def _cell(value) -> str:
    """A number with four significant digits or all before the point, or a text as it is."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def failures(result: Result) -> list[str]:
    """What went wrong, once for each reason, and what was not used."""
    counts = result.rows["error"].dropna().value_counts()
    unused = ["method and budgets are not used by this task."] if result.rows["method"].isna().all() else []
    return [f"{count} row{'s' * (count > 1)} without a value: {reason}" for reason, count in counts.items()] + unused


def parts_table(result: Result) -> Table | None:
    """Scores of every data set, group and turn, a line each, a column per method and budget."""
    parts = result.parts
    if "part" not in parts or parts["samples"].sum() == 0:
        return None
    scored = parts[(parts["kind"] != "all") & (parts["samples"] > 0)]
    names = list(dict.fromkeys(f"{line.method} {line.budget}" for line in parts.itertuples() if line.samples))
    scale, digits = scale_of(result.rows)
    table = Table(title=f"{'per cent; ' if scale == 100 else ''}summary.csv has the intervals")
    for name in ("", "", *names):
        table.add_column(name, justify="right" if name else "left")
    for (kind, part), lines in scored.groupby(["kind", "part"], sort=False):
        told = {f"{line.method} {line.budget}": part_of(line, scale, digits) for line in lines.itertuples()}
        table.add_row(str(kind), str(part), *(told.get(name, "") for name in names))
    return table


def answers_table(result: Result) -> Table | None:
    """avg@n, pass@k and the lengths of answers, where they were drawn, or where some were cut or loop."""
    if not drawn_answers.worth_a_table(result.rows):
        return None
    found = drawn_answers.table(result.rows)
    each = ", ".join(str(number) for number in sorted(found["answers"].unique()))
    table = Table(title=f"{found['problems'].iloc[0]} problems, answers to each: {each}; answers.csv has the intervals")
    scores = [name for name in found if name.startswith(("avg@", "pass@")) and not name.endswith(("_low", "_high"))]
    shares = [name for name in ("truncated", "looping") if name in found]
    sizes = [name for name in ("tokens", "peak") if name in found]
    for name in ("method", "asked", *scores, *shares, *(ANSWERS[name] for name in sizes), "lost"):
        table.add_column(name, justify="left" if name in ("method", "asked") else "right")
    for line in found.to_dict("records"):
        told = [number(line[name], 100, 1) + " %" if pd.notna(line[name]) else "-" for name in (*scores, *shares)]
        told += [number(line[name], 1, 0) if pd.notna(line[name]) else "-" for name in sizes]
        table.add_row(line["method"], line["budget"], *told, str(line["lost"] or ""))
    return table


ANSWERS = {"tokens": "tokens, mean", "peak": "most entries in a step"}


def part_of(line, scale: float, digits: int) -> str:
    """A data set's score; of some of its samples it says of how many."""
    return number(line.score, scale, digits) + ("" if line.complete else f" ({line.samples} of {line.asked})")


def show(result: Result, words: Sequence[str] | None = None) -> None:
    """Prints the summary of a run and the paths of its figures, rows and W&B run; no text of theirs is markup.

    `words` are those that asked for the run, where it was asked for alone.
    """
    console = Console(width=None if Console().is_terminal else 170, markup=False, emoji=False, highlight=False)
    if result.note is not None:
        console.print(result.note, soft_wrap=True)
        return
    if "score" in result.summary:
        table, notes = main_table(result)
        tables = [table]
    else:
        tables, notes = frame_tables(result), failures(result)
    for table in tables:
        console.print(table)
    for note in notes:
        console.print(f"  {note}", soft_wrap=True)
    parts = parts_table(result)
    if parts is not None:
        console.print(parts)
    answers = answers_table(result)
    if answers is not None:
        console.print(answers)
    for line in last_lines(result):
        console.print(line, soft_wrap=True)
    for line in closing.next_lines(result, words):
        console.print(line, soft_wrap=True)
    for line in cautions.loud(result.rows):
        console.print(f"WARNING: {line}", soft_wrap=True, style="bold")


def last_lines(result: Result) -> list[str]:
    """What was measured now, what the table shows in words, and where the run's files are."""
    lines = []
    if not result.measured:
        lines.append("This run was finished before; nothing was measured again.")
    if result.more:
        lines.append(f"The run has {result.more} more samples, of a larger limit; its figures and tables show all.")
    lines += closing.sentences(result)
    figure = result.figures[0] if result.figures else None
    places = {"figure": figure, "rows": shown_rows(result.folder), "W&B": result.tracked}
    return lines + [f"{name:<8}{place}" for name, place in places.items() if place is not None]
