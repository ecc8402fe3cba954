"""Which methods are not told apart from the best one at a size: paired tests against it, after Holm's correction.

The best is the one with the best mean; choosing it by the same samples makes the group a little larger or smaller than
a test planned before would. References, leaking methods and incomplete cells are in no group (`stats.ranking`).
"""

import pandas as pd

from pvcbench.stats import ranking, significance


def with_the_best(rows: pd.DataFrame, table: pd.DataFrame, budget: str) -> set[str]:
    """The best method at one budget and those that no test tells from it; empty where nothing could be tested.

    `table` is the run's summary as people read it (`perplexity.shown`). A family of tests is one budget's.
    """
    cells = table[ranking.ranked(table) & (table["budget"] == budget) & table["score"].notna()]
    if len(cells) < 2:
        return set()
    cells = cells.sort_values("score", ascending="perplexity" in table, kind="stable")
    best, *others = cells["method"]
    found = pd.Series({name: significance.versus(rows, best, name, budget)["p"] for name in others})
    if found.isna().all():
        return set()
    found[:] = significance.holm(found)
    return {best, *found[~(found < significance.ALPHA)].index}
