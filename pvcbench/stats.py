"""Intervals: Wilson for proportions of single items, cluster bootstrap for everything else, paired by sample.

Fewer than ten clusters get no bootstrap interval. Where every cluster shows the same difference the bootstrap would
claim certainty; there the interval is how many unlike clusters an exact binomial bound still allows.
"""

import numpy as np
import pandas as pd
from scipy import stats

LEVEL = 0.95
RESAMPLES = 2000
FEWEST_CLUSTERS = 10
Interval = tuple[float, float] | None


def wilson(hits: int, trials: int) -> Interval:
    """The 95% Wilson interval of a proportion (200 of 200: 0.981 to 1)."""
    if trials == 0:
        return None
    interval = stats.binomtest(hits, trials).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def cluster_bootstrap(values: np.ndarray, clusters: np.ndarray, seed: int = 0) -> Interval:
    """The 95% interval of the mean over clusters resampled whole (scipy's percentile bootstrap).

    The resampled clusters depend on the seed and their number only, so every method and budget sees the same ones.
    """
    groups = pd.DataFrame({"value": values, "cluster": clusters}).groupby("cluster")["value"]
    sums, counts = groups.sum().to_numpy(), groups.count().to_numpy()
    if len(sums) < FEWEST_CLUSTERS:
        return None
    if np.ptp(sums) == 0 and np.ptp(counts) == 0:
        return _all_alike(float(values.mean()), len(sums))
    result = stats.bootstrap(
        (sums, counts),
        lambda total, number, axis=-1: total.sum(axis=axis) / number.sum(axis=axis),
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        paired=True,
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _all_alike(value: float, clusters: int) -> Interval:
    """Bounds for a mean difference of scores in [0, 1] when none of the clusters deviates."""
    unlike = stats.binomtest(0, clusters).proportion_ci(LEVEL, method="exact").high
    return max(-1.0, value - unlike * (1 + value)), min(1.0, value + unlike * (1 - value))


def mean_interval(scores: pd.Series, clusters: pd.Series) -> Interval:
    """The interval of a mean score: Wilson for zeros and ones of single items, else the cluster bootstrap."""
    if scores.isin((0, 1)).all() and clusters.is_unique:
        return wilson(int(scores.sum()), len(scores))
    return cluster_bootstrap(scores.to_numpy(float), clusters.to_numpy())


def paired_difference(cell: pd.DataFrame, reference: pd.DataFrame) -> tuple[float, Interval, int]:
    """Mean of (cell - reference) over the samples both have, its interval, and how many samples that are.

    Raises if a sample's prompts differ: then the pairs are none.
    """
    both = cell.merge(reference, on="sample", suffixes=("", "_reference"))
    if (both["prompt_sha256"] != both["prompt_sha256_reference"]).any():
        raise ValueError("paired rows come from different prompts")
    if both.empty:
        return float("nan"), None, 0
    difference = (both["score"] - both["score_reference"]).to_numpy(float)
    return float(difference.mean()), cluster_bootstrap(difference, both["cluster"].to_numpy()), len(both)


def summarize(rows: pd.DataFrame) -> pd.DataFrame:
    """One line per method and budget of one run: measured size, score with interval, paired difference to full.

    Cells without a single score stay, with their error; the reference cell comes first.
    """
    done = rows[rows["error"].isna()]
    reference = done[done["reference"]][["sample", "score", "prompt_sha256"]]
    lines = []
    for (method, budget), cell in rows.groupby(["method", "budget"], sort=False):
        good = cell[cell["error"].isna() & cell["score"].notna()]
        line = {"method": method, "budget": budget, "reference": bool(cell["reference"].iloc[0]), "samples": len(good)}
        line["errors"] = int(cell["error"].notna().sum())
        line["error"] = cell["error"].dropna().iloc[0] if line["errors"] else None
        if len(good):
            line |= {name: float(good[name].mean()) for name in ("kept_fraction", "kept_entries", "prompt_tokens")}
            line["mib"] = float(good["kv_bytes"].mean()) / 2**20
            line["prefill_s"] = float(good["prefill_s"].median())
            line["score"] = float(good["score"].mean())
            line["low"], line["high"] = mean_interval(good["score"], good["cluster"]) or (np.nan, np.nan)
            if not line["reference"] and len(reference):
                columns = ["sample", "score", "prompt_sha256", "cluster"]
                line["difference"], interval, line["pairs"] = paired_difference(good[columns], reference)
                line["difference_low"], line["difference_high"] = interval or (np.nan, np.nan)
        lines.append(line)
    table = pd.DataFrame(lines)
    columns = ["kept_fraction", "kept_entries", "prompt_tokens", "mib", "prefill_s", "score", "low", "high"]
    columns += ["difference", "difference_low", "difference_high", "pairs"]
    for name in columns:
        if name not in table:
            table[name] = np.nan
    order = table.assign(rank=~table["reference"]).sort_values(["rank", "method", "kept_fraction"], kind="stable")
    return order.drop(columns="rank").reset_index(drop=True)
