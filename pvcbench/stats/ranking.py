"""What may be ranked: cells that answered every sample of their run, of methods that read the prompt alone.

A cell with scores of some samples only is incomplete: its mean is of other samples than the others' means. It is shown
with both numbers and best of nothing, on no front and in no test (see `stats.summaries`).
"""

from collections.abc import Iterator

import pandas as pd


def leaking(rows: pd.DataFrame) -> set[str]:
    """The methods that read what follows the prompt: references, drawn beside the others and never ranked."""
    if "leaks" in rows:  # as the loader of rows has it
        return set(rows[rows["leaks"].astype(bool)]["method"])
    if "reads" not in rows:
        return set()
    return set(rows[rows["reads"].notna() & rows["reads"].ne("prompt")]["method"])


def answered(rows: pd.DataFrame) -> pd.Series:
    """Which rows have a score."""
    return rows["error"].isna() & rows["score"].notna()


def ranked(table: pd.DataFrame) -> pd.Series:
    """Which cells of a summary may be best of something: complete ones of no reference."""
    return table["complete"] & ~table["reference"].astype(bool) & ~table["leaks"]


def shared(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the samples that every cell with any score has answered."""
    good = rows[answered(rows)]
    cells = good.groupby(["method", "budget"]).ngroups
    counts = good.groupby("sample").size()
    return good[good["sample"].isin(counts[counts == cells].index)]


def beside_incomplete(rows: pd.DataFrame, table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each budget with an incomplete cell, and the rows of its cells and the full cache on the samples they share."""
    partial = table[~table["complete"] & (table["samples"] > 0) & ~table["reference"].astype(bool)]
    for budget in partial["budget"].unique():
        yield budget, shared(rows[(rows["budget"] == budget) | rows["reference"].astype(bool)])
