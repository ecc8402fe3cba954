"""Intervals: Wilson for proportions of single items, cluster bootstrap for everything else, paired by sample.

Fewer than ten clusters (in any stratum) get no bootstrap interval. Where every cluster shows the same difference the
bootstrap would claim certainty; there the interval is how many unlike clusters an exact binomial bound still allows.
Where samples have strata (data sets), a score is the mean of the strata's means, and each is resampled by itself.
"""

import numpy as np
import pandas as pd
from scipy import stats

from pvcbench import ranking, sizes

LEVEL = 0.95
RESAMPLES = 2000
FEWEST_CLUSTERS = 10
Interval = tuple[float, float] | None
NUMBERS = ("kept_bytes", "kept_fraction", "kept_entries", "prompt_tokens", "mib", "full_mib", "prefill_s")
NUMBERS += ("score", "low", "high", "at_worst", "difference", "difference_low", "difference_high", "pairs", "lost")


def wilson(hits: int, trials: int) -> Interval:
    """The 95% Wilson interval of a proportion (200 of 200: 0.981 to 1)."""
    if trials == 0:
        return None
    interval = stats.binomtest(hits, trials).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def cluster_bootstrap(
    values: np.ndarray,
    clusters: np.ndarray,
    seed: int = 0,
    strata: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    bounded: bool = True,
) -> Interval:
    """The 95% interval of the mean over clusters resampled whole (scipy's percentile bootstrap), stratum by stratum.

    The resampled clusters depend on the seed and their number only, so every method and budget sees the same ones.
    `weights` make the mean a ratio of sums; `bounded` says that the values are scores in [0, 1] or their differences.
    """
    table = pd.DataFrame({"value": values, "weight": 1.0 if weights is None else weights, "cluster": clusters})
    table["total"], table["stratum"] = table["value"] * table["weight"], "" if strata is None else strata
    parts = [part.groupby("cluster")[["total", "weight"]].sum() for _, part in table.groupby("stratum")]
    fewest = min(len(part) for part in parts)
    if fewest < FEWEST_CLUSTERS:
        return None
    arrays = [(part["total"].to_numpy(), part["weight"].to_numpy()) for part in parts]
    if all(np.ptp(totals / counts) < 1e-12 for totals, counts in arrays):  # sums of equal scores may round apart
        value = float(np.mean([totals.sum() / counts.sum() for totals, counts in arrays]))
        return _all_alike(value, fewest) if bounded else None

    def mean_of_means(*picked, axis=-1):
        picked = [index.astype(int) for index in picked]
        means = [a[index].sum(axis) / b[index].sum(axis) for (a, b), index in zip(arrays, picked, strict=True)]
        return np.mean(means, axis=0)

    result = stats.bootstrap(
        [np.arange(len(part)) for part in parts],
        mean_of_means,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _all_alike(value: float, clusters: int) -> Interval:
    """Bounds for a mean difference of scores in [0, 1] when none of the clusters deviates."""
    unlike = stats.binomtest(0, clusters).proportion_ci(LEVEL, method="exact").high
    return max(-1.0, value - unlike * (1 + value)), min(1.0, value + unlike * (1 - value))


def mean_of_strata(values: pd.Series, strata: pd.Series) -> float:
    """The mean of the strata's means."""
    return float(values.astype(float).groupby(strata).mean().mean())


def mean_interval(scores: pd.Series, clusters: pd.Series, strata: pd.Series) -> Interval:
    """The interval of a mean score: Wilson for zeros and ones of single items, else the cluster bootstrap."""
    if scores.isin((0, 1)).all() and clusters.is_unique and strata.nunique() == 1:
        return wilson(int(scores.sum()), len(scores))
    arrays = scores.to_numpy(float), clusters.to_numpy()
    return cluster_bootstrap(*arrays, strata=strata.to_numpy(), bounded=scores.between(0, 1).all())


def pairs(cell: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """The samples that both have, with `difference` (cell - reference), `cluster`, `stratum` and both scores.

    Raises if a sample's prompts differ: then the pairs are none.
    """
    both = cell.merge(reference, on="sample", suffixes=("", "_reference"))
    if (both["prompt_sha256"] != both["prompt_sha256_reference"]).any():
        raise ValueError("paired rows come from different prompts")
    return both.assign(difference=both["score"].astype(float) - both["score_reference"].astype(float))


def paired_difference(cell: pd.DataFrame, reference: pd.DataFrame) -> tuple[float, Interval, int]:
    """Mean of (cell - reference) over the samples both have, its interval, and how many samples that are."""
    both = pairs(cell, reference)
    if both.empty:
        return float("nan"), None, 0
    bounded = both["score"].between(0, 1).all() and both["score_reference"].between(0, 1).all()
    arrays = both["difference"].to_numpy(), both["cluster"].to_numpy()
    interval = cluster_bootstrap(*arrays, strata=both["stratum"].to_numpy(), bounded=bounded)
    return mean_of_strata(both["difference"], both["stratum"]), interval, len(both)


def info(rows: pd.DataFrame, key: str) -> pd.Series:
    """One entry of every row's sample_info; None where it has none."""
    return rows["sample_info"].map(lambda info: info.get(key) if isinstance(info, dict) else None)


def headline(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that the task's overall mean is made of: all, unless samples say which (LongBench: 16 sets of 21)."""
    if "sample_info" not in rows:
        return rows
    chosen = info(rows, "headline").eq(True)
    return rows[chosen] if chosen.any() else rows


def breakdown(rows: pd.DataFrame) -> pd.DataFrame:
    """Summaries of every stratum, group and bucket of a run and of all together, with `part` and `kind` columns."""
    tables = [summarize(rows).assign(kind="all", part="mean")]
    kinds = {"set": rows["stratum"], "group": info(rows, "group"), "bucket": info(rows, "bucket")}
    for kind, labels in kinds.items():
        for label in labels.dropna().unique() if labels.nunique() > 1 else ():
            tables.append(summarize(rows[labels == label]).assign(kind=kind, part=label))
    return pd.concat(tables, ignore_index=True)


def summarize(rows: pd.DataFrame) -> pd.DataFrame:
    """One line per method and budget of one run: measured sizes, score with interval, paired difference to full.

    A cell with scores of some of the run's samples only is not `complete`: its mean is over the `samples` it answered
    of the `asked`, the low end of its interval counts the others as the worst score, and `lost` says how many pairs it
    lacks. Cells without a single score stay, with their error; the reference cell comes first.
    """
    rows = sizes.with_bytes(headline(rows.assign(stratum=rows["stratum"].fillna("") if "stratum" in rows else "")))
    done, leaks = rows[ranking.answered(rows)], ranking.leaking(rows)
    reference = done[done["reference"].astype(bool)][["sample", "score", "prompt_sha256"]]
    everyone = rows.drop_duplicates("sample")[["sample", "cluster", "stratum"]]
    worst = 0.0 if done["score"].astype(float).between(0, 1).all() else -np.inf
    lines = []
    for (method, budget), cell in rows.groupby(["method", "budget"], sort=False):
        good = cell[ranking.answered(cell)]
        line = {"method": method, "budget": budget, "reference": bool(cell["reference"].iloc[0])}
        line |= {"leaks": method in leaks, "samples": len(good), "asked": len(everyone)}
        line["complete"] = len(good) == len(everyone)
        line["errors"] = int(cell["error"].notna().sum())
        line["error"] = cell["error"].dropna().iloc[0] if line["errors"] else None
        if len(good):
            line |= _measured(good) | _scored(good, everyone, worst)
            if not line["reference"] and len(reference):
                columns = ["sample", "score", "prompt_sha256", "cluster", "stratum"]
                line["difference"], interval, line["pairs"] = paired_difference(good[columns], reference)
                line["difference_low"], line["difference_high"] = interval or (np.nan, np.nan)
                line["lost"] = len(everyone) - line["pairs"]
        lines.append(line)
    table = pd.DataFrame(lines)
    for name in NUMBERS:
        if name not in table:
            table[name] = np.nan
    order = table.assign(rank=~table["reference"]).sort_values(["rank", "method", "kept_fraction"], kind="stable")
    return order.drop(columns="rank").reset_index(drop=True)


def _measured(good: pd.DataFrame) -> dict[str, float]:
    """Sizes and time of a cell over the samples it answered; `full_mib` is the full cache's on the same samples."""
    names = ("kept_bytes", "kept_fraction", "kept_entries", "prompt_tokens")
    line = {name: float(good[name].astype(float).mean()) for name in names}
    line |= {"mib": float(good["kv_bytes"].mean()) / 2**20, "full_mib": float(good["full_bytes"].mean()) / 2**20}
    return line | {"prefill_s": float(good["prefill_s"].median())}


def _scored(good: pd.DataFrame, everyone: pd.DataFrame, worst: float) -> dict[str, float]:
    """The mean score with its interval; `at_worst` is the mean with the samples that lack one counted as the worst."""
    score, (low, high) = mean_of_strata(good["score"], good["stratum"]), _ends_of(good)
    line = {"score": score, "low": low, "high": high, "at_worst": score}
    if len(good) < len(everyone):
        found = everyone["sample"].map(good.set_index("sample")["score"].astype(float))
        filled = everyone.assign(score=found.astype(float).fillna(worst))
        line["at_worst"] = mean_of_strata(filled["score"], everyone["stratum"])
        line["low"] = _ends_of(filled)[0] if np.isfinite(worst) else worst
    return line if np.isfinite(high) else line | {"low": np.nan}


def _ends_of(rows: pd.DataFrame) -> tuple[float, float]:
    return mean_interval(rows["score"], rows["cluster"], rows["stratum"]) or (np.nan, np.nan)
