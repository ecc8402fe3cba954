"""Which cells differ from the full cache: the p-values of paired differences, corrected by Holm.

A difference's p-value comes from the construction of its interval (`stats.intervals`): below 0.05 exactly where the
interval excludes zero. After Holm's correction for many comparisons fewer are below it; readers are told so
(`plots.style.HOLM_NOTE`).
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from statsmodels.stats.multitest import multipletests

from pvcbench.stats import intervals, perplexity, sizes, summaries

ALPHA = 0.05
TEST = "Tests: McNemar's for zeros and ones of single items, else Student's t of cluster means, corrected for skew"


def holm(values: Sequence[float]) -> np.ndarray:
    """P-values adjusted by Holm's step-down (Scandinavian Journal of Statistics 6, 1979); NaN stay and do not count."""
    values = np.asarray(values, dtype=float)
    adjusted, known = np.full_like(values, np.nan), ~np.isnan(values)
    if known.any():
        adjusted[known] = multipletests(values[known], method="holm")[1]
    return adjusted


def compared(rows: pd.DataFrame, table: pd.DataFrame | None = None) -> pd.DataFrame:
    """The summary of a run as people read it, with `p` and `p_holm` against the full cache; one family per run.

    `table` is that summary (`perplexity.shown`) where it is at hand. A cell that lacks scores of some samples is in no
    test, and nothing is tested against such a full cache.
    """
    table = perplexity.shown(rows) if table is None else table
    whole = table[table["reference"].astype(bool)]["complete"].any()
    tested = table["p"].where(table["complete"] & whole & ~table["reference"].astype(bool))
    return table.assign(p=tested, p_holm=holm(tested))


def versus(rows: pd.DataFrame, method: str, other: str, budget: str) -> dict:
    """One method against another at one budget, over the samples both answered: a line for a table, `p` uncorrected.

    `difference` is the method's score minus the other's (of perplexity: of minus the mean NLL), with the interval of
    `intervals.paired`. Sizes are measured on the same samples: `kept` and `other_kept` as shares of the full cache's
    bytes, `entries` and `other_entries` in the layers that evict. `lost` samples have no pair; where a row of either
    failed there is no test. Raises ValueError where there is no pair.
    """
    rows = sizes.with_bytes(summaries.headline(rows))
    rows = rows[(rows["budget"] == budget) & rows["method"].isin([method, other])]
    done = rows[rows["error"].isna() & rows["score"].notna()]
    one, two = done[done["method"] == method], done[done["method"] == other]
    columns = ["sample", "score", "prompt_sha256", "cluster", "stratum"]
    found = intervals.paired(one[columns], two[columns[:3]], intervals.unit(rows[rows["error"].isna()]["score"]))
    if not found.n:
        raise ValueError(f"no sample has a score of both {method} and {other} at {budget}")
    low, high = found.interval or (float("nan"), float("nan"))
    both = set(one["sample"]) & set(two["sample"])
    line = {"method": method, "other": other, "budget": budget}
    for of, cell in (("", one), ("other_", two)):
        same = cell[cell["sample"].isin(both)][["kept_bytes", "kept_fraction"]].astype(float).mean()
        line |= {f"{of}kept": same["kept_bytes"], f"{of}entries": same["kept_fraction"]}
    line |= {"samples": found.n, "lost": rows["sample"].nunique() - found.n}
    line |= {"difference": found.difference, "low": low, "high": high}
    return line | {"p": found.p if rows["error"].isna().all() else float("nan")}
