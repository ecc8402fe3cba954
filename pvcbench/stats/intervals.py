"""95% intervals and the p-values that belong to them: one construction for each kind of data gives both.

So an interval excludes zero exactly where its p-value is below 0.05. Zeros and ones of single items: Wilson's score
interval for a proportion, Tango's for a paired difference with its own score test (McNemar's). Everything else, whole
clusters (a document, a needle) being the unit: Student's t of the jackknifed mean, and the same with Hall's correction
for skew; the interval is the smallest that holds both. Where no cluster deviates and values are bounded, an exact
binomial bound. Fewer than ten clusters (in any stratum) get neither interval nor p, single items' proportions aside.
Where samples have strata (data sets), a score is the mean of the strata's means. `scripts/coverage.py` simulates how
often such intervals hold the truth.

    mean_interval(scores, clusters, strata)                     # (0.61, 0.89), or None
    paired(cell, reference)                                     # difference, interval, p, n
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import optimize, stats
from statsmodels.stats.proportion import proportion_confint

LEVEL = 0.95
FEWEST_CLUSTERS = 10
SCORES, DIFFERENCES = (0.0, 1.0), (-1.0, 1.0)  # where scores and their differences lie, if they lie in [0, 1]
# By how much the estimated skewness is multiplied, chosen by simulation: values without bounds (likelihoods) have tails
# that ten or twenty samples seldom show; scores in [0, 1] have none, and their masses at the ends look like some.
SKEW_OPEN, SKEW_BOUNDED = 1.3, 0.6
Interval = tuple[float, float] | None
Bounds = tuple[float, float] | None


class Found(NamedTuple):
    """A mean with both ends of its interval and the p-value of a mean of zero; NaN where there is none."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray


class Paired(NamedTuple):
    """A mean paired difference; `interval` is None and `p` NaN where there are too few clusters."""

    difference: float
    interval: Interval
    p: float
    n: int  # samples that both have


def wilson(hits: float, trials: float) -> Interval:
    """The 95% Wilson interval of a proportion (200 of 200: 0.981 to 1); both may be fractions."""
    if trials <= 0:
        return None
    low, high = proportion_confint(hits, trials, 1 - LEVEL, method="wilson")
    return (0.0 if hits <= 0 else float(low)), (1.0 if hits >= trials else float(high))


def tango(more: int, fewer: int, trials: int) -> tuple[float, float, float]:
    """Both ends of Tango's 95% score interval of a paired difference of proportions, and McNemar's p, its score test.

    `more` and `fewer` count the pairs (1, 0) and (0, 1). Statistics in Medicine 17 (1998), 891.
    """

    def score(delta: float) -> float:
        middle = -more - fewer + (2 * trials - more + fewer) * delta
        root = np.sqrt(max(0.0, middle**2 + 8 * trials * fewer * delta * (1 - delta)))
        loss = (root - middle) / (4 * trials)  # the likeliest share of (0, 1) given the difference
        variance = trials * (2 * loss + delta * (1 - delta))
        return (more - fewer - trials * delta) / np.sqrt(max(variance, 1e-300))

    z, found = stats.norm.ppf(0.5 + LEVEL / 2), (more - fewer) / trials
    ends = [
        edge if abs(found - edge) < 1e-12 else optimize.brentq(lambda d, z=side * z: score(d) - z, *limits, xtol=1e-14)
        for side, edge, limits in ((1, -1.0, (-1 + 1e-12, found)), (-1, 1.0, (found, 1 - 1e-12)))
    ]
    p = stats.chi2.sf((more - fewer) ** 2 / (more + fewer), 1) if more + fewer else 1.0
    return *map(float, ends), float(p)


@np.errstate(divide="ignore", invalid="ignore")
def of_clusters(totals, sizes=None, strata=None, bounds: Bounds = None) -> Found:
    """The mean of values with interval and p, from the clusters' totals and sizes, [clusters, ...] each.

    A mean is the ratio of both sums; trailing axes are means of their own. Clusters of size 0 do not count. `strata`
    ([clusters]) are averaged with equal weights. `bounds` are the least and the largest value there can be.
    """
    totals = np.asarray(totals, dtype=float)
    sizes = np.ones_like(totals) if sizes is None else np.broadcast_to(np.asarray(sizes, dtype=float), totals.shape)
    codes = np.zeros(len(totals), dtype=int) if strata is None else pd.factorize(np.asarray(strata))[0]
    parts = [_moments(totals[codes == code], sizes[codes == code], bounds) for code in range(codes.max() + 1)]
    mean, variance, third, freedom, count, alike = (np.stack(part) for part in zip(*parts, strict=True))
    number, fewest, all_alike = len(parts), count.min(0), alike.all(0)
    mean, share = mean.mean(0), variance / number**2
    freedom = share.sum(0) ** 2 / (share**2 / freedom).sum(0)  # Welch and Satterthwaite
    skew = (SKEW_BOUNDED if bounds else SKEW_OPEN) * third.sum(0) / number**3 / share.sum(0) ** 1.5
    found = _skewed(mean, np.sqrt(share.sum(0)), skew, freedom)
    bound = _unlike(mean, fewest, bounds) if bounds else (np.nan, np.nan, np.nan)
    chosen = [np.where(all_alike, one, other) for one, other in zip(bound, found, strict=True)]
    low, high, p = (np.where(fewest >= FEWEST_CLUSTERS, value, np.nan) for value in chosen)
    return Found(mean, low, high, p) if bounds is None else Found(mean, *np.clip((low, high), *bounds), p)


@np.errstate(divide="ignore", invalid="ignore")
def _moments(totals: np.ndarray, sizes: np.ndarray, bounds: Bounds) -> tuple[np.ndarray, ...]:
    """One stratum's mean, its variance and third cumulant, degrees of freedom, clusters, and whether all are alike.

    The cumulants are the jackknife's; with clusters of one size they are Student's. Where bounded values are all alike
    the variance is what it would be if one cluster more lay at the further bound.
    """
    known = sizes > 0
    count, whole = known.sum(0), sizes.sum(0)
    mean = totals.sum(0) / whole
    moved = np.where(known, (count - 1) * (totals - mean * sizes) / (whole - sizes), 0.0)
    alike = np.abs(moved).max(0) <= 1e-12 * np.maximum(1.0, np.abs(mean))
    variance = (moved**2).sum(0) / (count * (count - 1))
    third = (moved**3).sum(0) / (count * (count - 1) * (count - 2))
    if bounds:
        reach = np.maximum(mean - bounds[0], bounds[1] - mean)
        variance = np.where(alike, reach**2 * count / (count + 1) ** 3, variance)
    return mean, variance, np.where(alike, 0.0, third), count - 1, count, alike


def _skewed(mean, error, skew, freedom) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both ends of the smallest interval that holds Student's and Hall's, and the larger of their p-values.

    `error` and `skew` are the standard error and the skewness of the mean. Hall's transformation g of Student's t
    removes skew (Journal of the Royal Statistical Society B 54, 1992, 221). It is monotone: g(t) is compared with
    Student's quantiles for the p-value, and the quantiles are transformed back for the interval.
    """
    quantile, skew = stats.t.ppf(0.5 + LEVEL / 2, freedom), np.where(np.abs(skew) < 1e-6, 1e-6, skew)
    t = mean / error
    g = t + skew * t**2 / 3 + skew**2 * t**3 / 27 + skew / 6
    upper, lower = (3 / skew * (np.cbrt(1 + skew * (side * quantile - skew / 6)) - 1) for side in (1, -1))
    low, high = mean - error * np.maximum(quantile, upper), mean - error * np.minimum(-quantile, lower)
    p = 2 * stats.t.sf(np.maximum(np.minimum(t, g), -np.maximum(t, g)), freedom)
    return low, high, np.minimum(p, 1.0)


def _unlike(value, clusters, bounds: tuple[float, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bounds for a mean none of whose clusters deviates: as many as an exact binomial bound allows may yet; and p."""
    unlike = 1 - ((1 - LEVEL) / 2) ** (1 / np.maximum(clusters, 1))
    low, high = value - unlike * (value - bounds[0]), value + unlike * (bounds[1] - value)
    beyond = np.where(value > 0, -bounds[0], bounds[1])  # how far the unlike ones would have to lie beyond zero
    p = 2 * (beyond / (beyond + np.abs(value))) ** clusters
    return low, high, np.minimum(p, 1.0)


def clustered(values, clusters, strata=None, weights=None, bounds: Bounds = None) -> Found:
    """The mean of some values in whole clusters, as `of_clusters` has it, from one value an item.

    `weights` make it a ratio of sums: that of values times weights by that of weights.
    """
    table = pd.DataFrame({"total": np.asarray(values, dtype=float), "size": 1.0, "cluster": np.asarray(clusters)})
    table["stratum"] = "" if strata is None else np.asarray(strata)
    if weights is not None:
        table["size"] = np.asarray(weights, dtype=float)
        table["total"] *= table["size"]
    parts = table.groupby(["stratum", "cluster"], sort=False)[["total", "size"]].sum()
    strata = parts.index.get_level_values("stratum")
    return Found(*map(float, of_clusters(parts["total"], parts["size"], strata, bounds)))


def ends(found: Found) -> Interval:
    """The interval of one mean; None where there is none."""
    return None if np.isnan(found.low) else (float(found.low), float(found.high))


def unit(*scores: pd.Series) -> bool:
    """Whether scores are of the kind that lies in [0, 1]: all of a run should be asked, not one cell's."""
    return all(bool(some.dropna().astype(float).between(0, 1).all()) for some in scores)


def mean_of_strata(values: pd.Series, strata: pd.Series) -> float:
    """The mean of the strata's means."""
    return float(values.astype(float).groupby(strata).mean().mean())


def mean_interval(scores: pd.Series, clusters: pd.Series, strata: pd.Series, bounded: bool | None = None) -> Interval:
    """The interval of a mean score: Wilson's for zeros and ones of single items, else that of the clusters' mean.

    `bounded` says that scores lie in [0, 1] by their meaning; by these scores themselves if not given. Then fewer than
    ten single items have Wilson's interval too, whatever their scores: it is wide enough for any score in [0, 1].
    """
    scores, bounded = scores.astype(float), unit(scores) if bounded is None else bounded
    single = bounded and clusters.is_unique and strata.nunique() == 1
    if single and (scores.isin((0, 1)).all() or len(scores) < FEWEST_CLUSTERS):
        return wilson(float(scores.sum()), len(scores))
    return ends(clustered(scores, clusters, strata, bounds=SCORES if bounded else None))


def proportion_interval(hits: pd.Series, clusters: pd.Series) -> Interval:
    """The interval of a proportion whose items share clusters: Wilson's for the effective number of items.

    That number is what single items would need for the variance between clusters, less for few clusters (Korn and
    Graubard, Survey Methodology 24, 1998, 193); without variance it is the number of clusters.
    """
    hits, known = hits.astype(float), hits.groupby(np.asarray(clusters)).agg(["sum", "size"]).to_numpy(float)
    items, number, share = len(hits), len(known), float(hits.mean())
    effective = float(number)
    if number == items:
        return wilson(hits.sum(), items)
    if number > 1 and 0 < share < 1:
        _, variance, *_ = _moments(known[:, :1], known[:, 1:], None)
        narrower = (stats.norm.ppf(0.5 + LEVEL / 2) / stats.t.ppf(0.5 + LEVEL / 2, number - 1)) ** 2
        effective = min(items, narrower * share * (1 - share) / max(float(variance[0]), 1e-300))
    return wilson(share * effective, effective)


def pairs(cell: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """The samples that both have, with `difference` (cell - reference), `cluster`, `stratum` and both scores.

    Raises if a sample's prompts differ: then the pairs are none.
    """
    both = cell.merge(reference, on="sample", suffixes=("", "_reference"))
    if (both["prompt_sha256"] != both["prompt_sha256_reference"]).any():
        raise ValueError("paired rows come from different prompts")
    return both.assign(difference=both["score"].astype(float) - both["score_reference"].astype(float))


def paired(cell: pd.DataFrame, reference: pd.DataFrame, bounded: bool | None = None) -> Paired:
    """Mean of (cell - reference) over the samples both have, its interval and p-value, and how many samples that are.

    `bounded` says that the scores lie in [0, 1] by their meaning; by these scores themselves if not given.
    """
    both = pairs(cell, reference)
    if both.empty:
        return Paired(float("nan"), None, float("nan"), 0)
    difference, scores = both["difference"], (both["score"], both["score_reference"])
    bounded = unit(*scores) if bounded is None else bounded
    single = both["cluster"].is_unique and both["stratum"].nunique() == 1 and len(both) >= FEWEST_CLUSTERS
    binary = bounded and single and all(some.astype(float).isin((0, 1)).all() for some in scores)
    if binary and difference.nunique() > 1:
        low, high, p = tango(int((difference > 0).sum()), int((difference < 0).sum()), len(both))
        return Paired(float(difference.mean()), (low, high), p, len(both))
    found = clustered(difference, both["cluster"], both["stratum"], bounds=DIFFERENCES if bounded else None)
    return Paired(found.mean, ends(found), found.p, len(both))


def paired_difference(cell: pd.DataFrame, reference: pd.DataFrame) -> tuple[float, Interval, int]:
    """The difference, its interval and the number of pairs of `paired`."""
    found = paired(cell, reference)
    return found.difference, found.interval, found.n
