"""Which cells differ from the full cache: sign-flip permutation tests of paired differences, corrected by Holm.

Under the null hypothesis a method and the full cache are exchangeable within a cluster (a document, a needle), so the
sign of each cluster's summed differences is a coin: whole clusters are flipped, as whole blocks are in Winkler et al.
2014 (doi 10.1016/j.neuroimage.2014.01.060). All sign patterns are tried where there are few, else 9,999 random ones
with the observed one counted in. The test is exact, also where differences are few or zeros and ones, where the
percentile bootstrap that the intervals come from is known to be too narrow; so the two may disagree at the margin.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests

from pvcbench import likelihood, sizes, stats

ALPHA = 0.05
FLIPS = 9999


def sign_flip(differences: Sequence[float], clusters: Sequence, strata: Sequence | None = None) -> float:
    """The two-sided p-value of a mean paired difference of zero; NaN with fewer than ten clusters in any stratum.

    As in `stats`, the mean is that of the strata's means; a cluster lies in one stratum.
    """
    table = pd.DataFrame({"value": np.asarray(differences, dtype=float), "cluster": np.asarray(clusters)})
    table["stratum"] = "" if strata is None else np.asarray(strata)
    sizes = table.groupby("stratum")["value"].transform("size")
    totals = table.assign(share=table["value"] / sizes).groupby(["stratum", "cluster"])["share"].sum()
    if totals.groupby("stratum").size().min() < stats.FEWEST_CLUSTERS:
        return float("nan")
    moved = totals[totals.abs() > 1e-12].to_numpy()  # zeros flip to zeros
    if len(moved) < 2:
        return 1.0
    found = scipy_stats.permutation_test(
        (moved,),
        lambda values, axis: values.sum(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=FLIPS,
        batch=500,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def holm(values: Sequence[float]) -> np.ndarray:
    """P-values adjusted by Holm's step-down (Scandinavian Journal of Statistics 6, 1979); NaN stay and do not count."""
    values = np.asarray(values, dtype=float)
    adjusted, known = np.full_like(values, np.nan), ~np.isnan(values)
    if known.any():
        adjusted[known] = multipletests(values[known], method="holm")[1]
    return adjusted


def compared(rows: pd.DataFrame) -> pd.DataFrame:
    """The summary of a run as people read it, with `p` and `p_holm` against the full cache; one family per run.

    A cell that lacks scores of some samples is in no test, and nothing is tested against such a full cache.
    """
    table = likelihood.shown(rows)
    rows = stats.headline(rows)
    done = rows[rows["error"].isna() & rows["score"].notna()]
    reference = done[done["reference"].astype(bool)][["sample", "score", "prompt_sha256"]]
    columns, found = ["sample", "score", "prompt_sha256", "cluster", "stratum"], []
    whole = table[table["reference"].astype(bool)]["complete"].any()
    for line in table.itertuples():
        cell = done[(done["method"] == line.method) & (done["budget"] == line.budget)]
        tested = line.complete and whole and not line.reference
        both = stats.pairs(cell[columns], reference) if tested else []
        alike = [both["difference"], both["cluster"], both["stratum"]] if len(both) else None
        found.append(sign_flip(*alike) if alike else float("nan"))
    return table.assign(p=found, p_holm=holm(found))


def versus(rows: pd.DataFrame, method: str, other: str, budget: str) -> dict:
    """One method against another at one budget, over the samples both answered: a line for a table, `p` uncorrected.

    `difference` is the method's score minus the other's (of perplexity: of minus the mean NLL), with the interval of
    `stats.paired_difference`. Sizes are measured on the same samples: `kept` and `other_kept` as shares of the full
    cache's bytes, `entries` and `other_entries` in the layers that evict. `lost` samples have no pair; where a row of
    either failed there is no test. Raises ValueError where there is no pair.
    """
    rows = sizes.with_bytes(stats.headline(rows))
    rows = rows[(rows["budget"] == budget) & rows["method"].isin([method, other])]
    done = rows[rows["error"].isna() & rows["score"].notna()]
    one, two = done[done["method"] == method], done[done["method"] == other]
    columns = ["sample", "score", "prompt_sha256", "cluster", "stratum"]
    both = stats.pairs(one[columns], two[columns[:3]])
    if both.empty:
        raise ValueError(f"no sample has a score of both {method} and {other} at {budget}")
    difference, interval, number = stats.paired_difference(one[columns], two[columns[:3]])
    low, high = interval or (float("nan"), float("nan"))
    line = {"method": method, "other": other, "budget": budget}
    for of, cell in (("", one), ("other_", two)):
        same = cell[cell["sample"].isin(both["sample"])][["kept_bytes", "kept_fraction"]].astype(float).mean()
        line |= {f"{of}kept": same["kept_bytes"], f"{of}entries": same["kept_fraction"]}
    line |= {"samples": number, "lost": rows["sample"].nunique() - number}
    line |= {"difference": difference, "low": low, "high": high}
    tested = rows["error"].isna().all()
    return line | {"p": sign_flip(both["difference"], both["cluster"], both["stratum"]) if tested else float("nan")}
