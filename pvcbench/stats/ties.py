"""Which methods are not told apart from the best one at a size: paired tests against it, after Holm's correction.

The best is the one with the best mean; choosing it by the same samples makes the group a little larger or smaller than
a test planned before would. References, leaking methods and incomplete cells are in no group (`stats.ranking`).
"""

from collections.abc import Sequence

import pandas as pd

from pvcbench.stats import ranking, significance


def against_best(rows: pd.DataFrame, best: str, others: Sequence[str], budget: str) -> list[dict]:
    """Each other method's line of `significance.versus` the best one, with `p` corrected by Holm over these tests."""
    found = [significance.versus(rows, name, best, budget) for name in others]
    corrected = significance.holm([line["p"] for line in found])
    return [line | {"p": float(p)} for line, p in zip(found, corrected, strict=True)]


def with_the_best(rows: pd.DataFrame, table: pd.DataFrame, budget: str) -> set[str]:
    """The best method at one budget and those that no test tells from it; empty where nothing could be tested.

    `table` is the run's summary as people read it (`perplexity.shown`). A family of tests is one budget's.
    """
    cells = table[ranking.ranked(table) & (table["budget"] == budget) & table["score"].notna()]
    if len(cells) < 2:
        return set()
    cells = cells.sort_values("score", ascending="perplexity" in table, kind="stable")
    best, *others = cells["method"]
    found = against_best(rows, best, others, budget)
    if all(pd.isna(line["p"]) for line in found):
        return set()
    return {best, *(line["method"] for line in found if not line["p"] < significance.ALPHA)}
