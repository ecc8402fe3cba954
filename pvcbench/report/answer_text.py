"""The answer in words and numbers: what the report's first screen says of `answer`'s verdicts."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from pvcbench.plots.style import asked
from pvcbench.report import leaderboard
from pvcbench.report.answer import NO_SCORE, AtSize, Candidate
from pvcbench.report.numbers import interval, number
from pvcbench.stats import sizes
from pvcbench.stats.significance import ALPHA

SHOWN = 4  # methods of a leading group that get a line of the table; the others are named below them
RULE = (
    f"A cell stands at a size if its measured share of the cache lies within {sizes.OFF:.0%} of that size, relative. "
    "Tie: paired tests, corrected by Holm over the comparisons with the best score at that size, do not tell a method "
    f"apart from it at {ALPHA:.0%}; that is not to say that they are equal."
)


def view(ats: Sequence[AtSize], full: Mapping | None, run: Mapping, times: pd.DataFrame, places: Mapping) -> list[dict]:
    """A verdict per size: `head` and `words` for the sentence, `lines` for the table, what stands beside them."""
    whole = "" if full is None else f" (full cache: {score_of(full, run)})"
    return [at_size(at, whole, run, times, places) for at in ats]


def at_size(at: AtSize, whole: str, run: Mapping, times: pd.DataFrame, places: Mapping) -> dict:
    """The texts of one size."""
    head, words = sentence(at, whole, run)
    aside = [{"why": why, "cells": [link_of(cell, run, places) for cell in cells]} for why, cells in at.aside.items()]
    return {
        "size": f"{at.target:.0%}",
        "head": head,
        "words": words,
        "lines": [line_of(one, run, times, places) for one in at.leading[:SHOWN]],
        "tested": at.tested > 0,
        "more": [link_of(one.line, run, places) for one in at.leading[SHOWN:]],
        "behind": [link_of(one.line, run, places) for one in at.behind],
        "aside": aside,
    }


def sentence(at: AtSize, whole: str, run: Mapping) -> tuple[str, str]:
    """The verdict: what leads, and how sure that is."""
    if not at.leading:
        return unmeasured(at)
    best, total = at.leading[0], len(at.leading) + len(at.behind)
    score = f"{score_of(best.line, run)}{whole}"
    if total == 1:
        return best.method, f"is the only method measured here, with {score}: nothing to compare it with."
    if not at.tested:
        return "No test is possible:", f"too few samples. The best of {total} scores is {best.method}'s, {score}."
    apart = f"tests tell it apart from {listed([one.method for one in at.behind], 2)}."
    if len(at.leading) == 1:
        return best.method, f"leads with {score}: {apart}"
    if not at.behind:
        tied = "Both methods tie:" if total == 2 else f"All {total} methods tie:"
        return tied, f"{samples_of(best)} tell none apart from the best, {best.method} with {score}."
    return (
        f"{len(at.leading)} of {total} tie:",
        f"{listed([one.method for one in at.leading])}. The best is {best.method} with {score}; {apart}",
    )


def samples_of(one: Candidate) -> str:
    """How many samples a cell has, in words."""
    count = int(one.line["samples"])
    return f"{count} sample{'s' * (count != 1)}"


def unmeasured(at: AtSize) -> tuple[str, str]:
    """What is said of a size at which there is no candidate."""
    if at.aside.keys() - {NO_SCORE}:
        return "Nothing to rank:", "what was measured here is no candidate."
    if at.nearest is None:
        return "Not measured:", "no cell of a method has a score."
    share = f"{at.nearest[at.measure]:.1%}"
    return "Not measured:", f"the nearest is {at.nearest['method']} at {share} (asked {asked(at.nearest['budget'])})."


def listed(names: Sequence[str], most: int = 4) -> str:
    """Names in a row, the first few of many."""
    if len(names) > most + 1:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def link_of(line: Mapping, run: Mapping, places: Mapping) -> dict:
    """A method with its score, and where its samples are."""
    key = line["method"], line["budget"]
    known = {"method": line["method"], "budget": line["budget"], "score": score_of(line, run)}
    return known | {"runs": places.get(key, [])}


def line_of(one: Candidate, run: Mapping, times: pd.DataFrame, places: Mapping) -> dict:
    """A line of the table: score, distance to the best, samples and costs."""
    line, digits, scale = one.line, run["digits"], run["scale"]
    sign, fine = (-1, 3) if run["lower"] else (scale, digits)  # of likelihoods: the NLL minus the best's
    ends = sorted((sign * one.low, sign * one.high))
    known = link_of(line, run, places) | {"asked": asked(line["budget"]), "n": int(line["samples"])}
    known["interval"] = interval(line["low"], line["high"], scale, digits) or "no interval"
    if not math.isfinite(line["low"] + line["high"]) and not pd.isna(line["low"] + line["high"]):
        known["interval"] = "unbounded"
    best = one.difference is None
    known["difference"] = "" if best else number(sign * one.difference, 1, fine, True)
    known["difference_interval"] = "" if best else interval(*ends, 1, fine, True)
    known["p"] = "" if best else leaderboard.probability(one.p) or "no test"
    share = line["kept_bytes"]
    known["kept"] = f"{line['kept_fraction']:.1%} of the entries" if pd.isna(share) else f"{share:.1%}"
    return known | {"mib": f"{line['mib']:.1f}"} | leaderboard.times_of(line, times)


def score_of(line: Mapping, run: Mapping) -> str:
    """A score in the page's unit, or why there is none."""
    if line["score"] is None or pd.isna(line["score"]):
        return leaderboard.absent(line)
    return number(line["score"], run["scale"], run["digits"])


def full_of(line: Mapping | None, run: Mapping, places: Mapping) -> dict | None:
    """The full cache's line, which every verdict is read against."""
    if line is None:
        return None
    known = link_of(line, run, places) | {"n": int(line["samples"]), "mib": f"{line['mib']:.1f}"}
    return known | {"interval": interval(line["low"], line["high"], run["scale"], run["digits"]) or "no interval"}
