"""Whether the full cache itself answers: where it does not, no method can be seen to lose anything.

A sample is answered where the full cache's score is a tenth of the best or more: below that lie wrong answers and the
few words that any two texts share. Fewer than half answered is the floor. Likelihoods and speeds have none.
"""

import re

import pandas as pd

from pvcbench.stats import ranking, summaries

ANSWERED = 0.1
WORD = "floor"  # instead of a difference that says nothing
THOUGHTS = {"<think>": "</think>", "<thinking>": "</thinking>", "[THINK]": "[/THINK]", "<seed:think>": "</seed:think>"}
CLOSED = re.compile("|".join(f"{re.escape(a)}.*?{re.escape(b)}" for a, b in THOUGHTS.items()), re.DOTALL)


def full_of(rows: pd.DataFrame) -> pd.DataFrame:
    """The full cache's rows that can be right or wrong; none where any score of the run lies outside [0, 1]."""
    if "reference" not in rows or "score" not in rows or ("repeats" in rows and rows["repeats"].notna().any()):
        return rows.iloc[:0]
    good = rows[ranking.answered(rows)]
    inside = good["score"].astype(float).between(0, 1).all()
    return good[good["reference"].eq(True)] if inside else good.iloc[:0]


def counted(full: pd.DataFrame) -> tuple[int, int]:
    """How many samples the full cache answers, and how many it has a score of."""
    return int((full["score"].astype(float) >= ANSWERED).sum()), len(full)


def at_floor(full: pd.DataFrame) -> bool:
    """Whether these rows of the full cache are right on fewer than half."""
    hits, total = counted(full)
    return total > 0 and 2 * hits < total


def sentence(rows: pd.DataFrame) -> str | None:
    """What stands above every number of a run at the floor; None where the full cache answers."""
    full = full_of(summaries.headline(rows))
    return told(full) if at_floor(full) else None


def told(full: pd.DataFrame) -> str:
    """The counts of a floor, and what they mean."""
    hits, total = counted(full)
    if not hits:
        return f"The full cache itself answers none of {total}: what a method loses cannot be seen here"
    return f"The full cache itself answers only {hits} of {total}: what a method loses can be seen on those alone"


def unseen(difference: float, low: float, high: float) -> bool:
    """Whether a difference at the floor is none that its interval tells from zero: it then says nothing."""
    return not pd.isna(difference) and (pd.isna(low) or low <= 0 <= high)


def sets(rows: pd.DataFrame) -> dict[str, str]:
    """The data sets of a run at the floor, each with its counts, where the run has several."""
    if rows["stratum"].nunique() < 2:
        return {}
    parts = {str(name): full_of(own) for name, own in rows.groupby("stratum", sort=False)}
    return {name: "{} of {}".format(*counted(full)) for name, full in parts.items() if at_floor(full)}


def silence(rows: pd.DataFrame) -> tuple[int, int, int]:
    """Of the full cache's answers: how many are empty, how many stop inside their thinking, and how many there are."""
    outputs = [text for text in full_of(rows)["output"] if isinstance(text, str)] if "output" in rows else []
    rest = [CLOSED.sub("", text).strip() for text in outputs]
    thinking = [any(start in text for start in THOUGHTS) for text in rest]
    empty = [not text for text in rest]
    return sum(empty), sum(thinking), len(rest)
