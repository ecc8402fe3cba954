"""What a cell costs in time beside the full cache on the same samples of the same run, as ratios.

    relative_times.of(rows).loc[("h2o", "0.25")]  # prefill and decode, NaN where nothing was measured

Seconds of different runs may be those of different machines, so only pairs within a run count.
"""

import pandas as pd

KEYS = ["run", "sample"]


def of(rows: pd.DataFrame) -> pd.DataFrame:
    """Median ratios `prefill` and `decode` by method and budget.

    Decoding is timed only where a cell stepped alone, and compared only where its answer is the full cache's, word for
    word: answers of other lengths take other numbers of steps.
    """
    good = rows[rows["error"].isna() & rows["method"].notna()]
    reference = good["reference"].astype(bool)
    full = good[reference].drop_duplicates(KEYS)[[*KEYS, "prefill_s", "decode_s", "output"]]
    both = good[~reference].merge(full, on=KEYS, suffixes=("", "_full"))
    same = both["output"].notna() & both["output"].eq(both["output_full"])
    ratios = pd.DataFrame({"method": both["method"], "budget": both["budget"]})
    ratios["prefill"] = ratio(both, "prefill_s")
    ratios["decode"] = ratio(both, "decode_s").where(same)
    return ratios.groupby(["method", "budget"])[["prefill", "decode"]].median()


def ratio(both: pd.DataFrame, name: str) -> pd.Series:
    """A cell's seconds by the full cache's, row by row."""
    whole = both[f"{name}_full"].astype(float)
    return both[name].astype(float) / whole.where(whole > 0)
