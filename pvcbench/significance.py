"""Which cells differ from the full cache: the p-values of paired differences, corrected by Holm.

A difference's p-value comes from the construction of its interval (`pvcbench.intervals`): below 0.05 exactly where the
interval excludes zero. After Holm's correction for many comparisons fewer are below it: STRICTER says so to readers.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from statsmodels.stats.multitest import multipletests

from pvcbench import intervals, likelihood, stats

ALPHA = 0.05
TEST = "Tests: McNemar's for zeros and ones of single items, else Student's t of cluster means, corrected for skew"
STRICTER = (
    "Each interval is of one difference by itself; the star allows for all comparisons together and is stricter, "
    "so an interval may exclude 0 where no star stands"
)


def holm(values: Sequence[float]) -> np.ndarray:
    """P-values adjusted by Holm's step-down (Scandinavian Journal of Statistics 6, 1979); NaN stay and do not count."""
    values = np.asarray(values, dtype=float)
    adjusted, known = np.full_like(values, np.nan), ~np.isnan(values)
    if known.any():
        adjusted[known] = multipletests(values[known], method="holm")[1]
    return adjusted


def compared(rows: pd.DataFrame) -> pd.DataFrame:
    """The summary of a run as people read it, with `p` and `p_holm` against the full cache; one family per run."""
    table = likelihood.shown(rows)
    return table.assign(p_holm=holm(table["p"]))


def versus(rows: pd.DataFrame, method: str, other: str, budget: str) -> dict:
    """One method against another at one budget, over the samples both answered: a line for a table, `p` uncorrected.

    `difference` is the method's score minus the other's (of perplexity: of minus the mean NLL), with the interval of
    `intervals.paired`; `kept` and `other_kept` are the measured sizes. Raises ValueError where there is no pair.
    """
    rows = stats.headline(rows)
    done = rows[rows["error"].isna() & rows["score"].notna() & (rows["budget"] == budget)]
    one, two = done[done["method"] == method], done[done["method"] == other]
    columns = ["sample", "score", "prompt_sha256", "cluster", "stratum"]
    found = intervals.paired(one[columns], two[columns[:3]], intervals.unit(rows[rows["error"].isna()]["score"]))
    if not found.n:
        raise ValueError(f"no sample has a score of both {method} and {other} at {budget}")
    low, high = found.interval or (float("nan"), float("nan"))
    both = set(one["sample"]) & set(two["sample"])
    sizes = [cell[cell["sample"].isin(both)]["kept_fraction"].astype(float).mean() for cell in (one, two)]
    line = {"method": method, "other": other, "budget": budget, "kept": sizes[0], "other_kept": sizes[1]}
    return line | {"samples": found.n, "difference": found.difference, "low": low, "high": high, "p": found.p}
