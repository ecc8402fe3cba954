"""What a run says last: what its table shows in words, what it does not show, and what to type next."""

import shlex
from collections.abc import Sequence, Set

import pandas as pd

from pvcbench.report import answer, answer_text, scores
from pvcbench.report.answer import floors_of
from pvcbench.runs.result import Result
from pvcbench.stats import ranking, significance


def scored(result: Result) -> bool:
    """Whether the run has scores, which analyses and runs that failed have not."""
    return "score" in result.summary and bool(result.summary["score"].notna().any())


def sentences(result: Result) -> list[str]:
    """The verdict at each size that was measured, and how far it carries; nothing where nothing can be compared."""
    if not scored(result):
        return []
    rows, table = result.rows, significance.compared(result.rows, result.summary)
    if table[ranking.ranked(table)]["method"].nunique() < 2:
        return []
    ats, run = answer.at_sizes(rows, table, floors_of(rows)), scores.run_of(rows, table)
    full = answer.full_cache(table)
    whole = "" if full is None else f" (full cache: {answer_text.score_of(full, run)})"
    told = [
        f"At {at.target:.0%} of the cache: {' '.join(answer_text.sentence(at, whole, run))}" for at in ats if at.leading
    ]
    return [*told, limits(rows)] if told else []


def limits(rows: pd.DataFrame) -> str:
    """What the verdict rests on."""
    count = rows["sample"].nunique()
    return (
        f"This rests on {count} sample{'s' * (count != 1)} of one task and one model. A tie means that these samples "
        "cannot tell methods apart, not that they are equal; other models, tasks and lengths may rank them otherwise."
    )


def next_lines(result: Result, words: Sequence[str] | None) -> list[str]:
    """Commands that go on from here, each with what it does; `words` are those that asked for the run, if known."""
    if not scored(result):
        return []
    table, folder = significance.compared(result.rows, result.summary), result.folder
    found = [(f"pvcbench report {shlex.quote(str(folder.parent))}", "one page of this experiment, sample by sample")]
    pair = widest(table, floors_of(result.rows))
    if pair is not None:
        asked = "--method {} --against {}@{}".format(*pair)
        found.append((f"pvcbench compare {shlex.quote(str(folder))} {asked}", "one method against another"))
    if words is not None:
        kept = [word for word in words if not word.lstrip("+~").startswith(("model=", "model.", "model@"))]
        again = shlex.join(["pvcbench", *kept, "model=hf", "model.name=ORG/NAME"])
        found.append((again, "the same on a model of yours"))
    wide = max(len(command) for command, _ in found)
    return [f"{'' if number else 'next':<8}{one:<{wide}}  {what}" for number, (one, what) in enumerate(found)]


def widest(table: pd.DataFrame, floors: Set[str]) -> tuple[str, str, str] | None:
    """Two methods and the budget at which their scores lie furthest apart, the better one first; None where all tie."""
    cells = table[ranking.ranked(table) & ~table["method"].isin(floors) & table["score"].notna()]
    ends, lower = {}, "perplexity" in table
    for budget, own in cells.groupby("budget", sort=False):
        order = own.sort_values("score", ascending=lower, kind="stable")
        first, last = order.iloc[0], order.iloc[-1]
        ends[first["method"], last["method"], budget] = abs(first["score"] - last["score"])
    best = max(ends, key=ends.__getitem__, default=None)
    return best if best is not None and ends[best] > 0 else None
