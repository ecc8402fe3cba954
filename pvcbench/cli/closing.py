"""What a run says last: what its table shows in words, what it does not show, and what to type next."""

import shlex

import pandas as pd

from pvcbench.report import answer, answer_text, scores
from pvcbench.report.html_page import floors_of
from pvcbench.runs.result import Result
from pvcbench.stats import ranking, significance


def scored(result: Result) -> bool:
    """Whether the run has scores, which analyses and runs that failed have not."""
    return "score" in result.summary and bool(result.summary["score"].notna().any())


def sentences(result: Result) -> list[str]:
    """The verdict at each size that was measured, and how far it carries; nothing where nothing can be compared."""
    if not scored(result):
        return []
    rows, table = result.rows, significance.compared(result.rows)
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


def next_lines(result: Result) -> list[str]:
    """Three commands that go on from here, each with what it does."""
    if not scored(result):
        return []
    table, folder = significance.compared(result.rows), result.folder
    order = table[ranking.ranked(table)].sort_values("score", ascending="perplexity" in table, kind="stable")
    methods = list(dict.fromkeys(order["method"]))
    rivals = [name for name in methods if name not in floors_of(result.rows)]
    found = [(f"pvcbench report {shlex.quote(str(folder.parent.parent))}", "one page of all runs, sample by sample")]
    if len(rivals) > 1:
        best = set(order[order["method"] == rivals[0]]["budget"])
        for other in rivals[1:]:
            both = [budget for budget in order[order["method"] == other]["budget"] if budget in best]
            if both:
                pair = f"--method {rivals[0]} --against {other}@{both[len(both) // 2]}"
                found.append((f"pvcbench compare {shlex.quote(str(folder))} {pair}", "one method against another"))
                break
    asked = f"'method=[{','.join(methods)}]'"
    found.append((f"pvcbench model=hf model.name=ORG/NAME {asked}", "the same methods on a model of yours"))
    wide = max(len(command) for command, _ in found)
    return [f"{'' if number else 'next':<8}{one:<{wide}}  {what}" for number, (one, what) in enumerate(found)]
