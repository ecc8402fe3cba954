"""Intervals and their p-values against libraries, brute force and each other."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from scipy.special import xlogy

from pvcbench.stats import intervals, perplexity, significance
from pvcbench.stats.summaries import summarize

ONE = pd.Series([""] * 200)


def frame(scores, clusters=None, strata=None):
    """What of a cell's rows the differences need."""
    number = len(scores)
    parts = {"sample": range(number), "score": scores, "prompt_sha256": "same"}
    parts["cluster"] = [str(i) for i in range(number)] if clusters is None else clusters
    return pd.DataFrame(parts).assign(stratum="" if strata is None else strata)


def compared(cell, reference, clusters=None, strata=None):
    """The paired comparison of two lists of scores."""
    return intervals.paired(frame(cell, clusters, strata), frame(reference)[["sample", "score", "prompt_sha256"]])


def agree(found):
    """Whether the interval excludes zero exactly where p is below 0.05; neither without the other."""
    if found.interval is None:
        return np.isnan(found.p)
    low, high = found.interval
    return low <= found.difference <= high and (low > 0 or high < 0) == (found.p < 0.05)


def test_values_without_skew_have_students_interval():
    values = np.r_[np.linspace(-1, 1, 12)] + 0.4
    found = intervals.clustered(values, range(12))
    one = stats.ttest_1samp(values, 0)
    assert (found.low, found.high) == pytest.approx(tuple(one.confidence_interval()), abs=1e-5)
    assert found.p == pytest.approx(one.pvalue, abs=1e-5)


def test_strata_without_skew_have_welchs_interval():
    """The mean of the strata a and -b is half of Welch's difference of means."""
    first, second = np.linspace(-1, 1, 12) + 0.4, 5 * np.linspace(-1, 1, 40) - 0.5
    found = intervals.clustered(np.r_[first, -second], range(52), ["a"] * 12 + ["b"] * 40)
    welch = stats.ttest_ind(first, second, equal_var=False)
    assert (found.low, found.high) == pytest.approx(np.array(welch.confidence_interval()) / 2, abs=1e-5)
    assert found.p == pytest.approx(welch.pvalue, abs=1e-5)


def test_skew_is_corrected_by_halls_transformation():
    """The interval is where the transformed statistic stays within Student's quantiles, found by search."""
    values = np.random.default_rng(0).lognormal(size=20)
    error, quantile = stats.sem(values), stats.t.ppf(0.975, 19)
    skew = intervals.SKEW_OPEN * stats.skew(values, bias=False) / np.sqrt(20)

    def transformed(mean):
        t = (values.mean() - mean) / error
        return t + skew * t**2 / 3 + skew**2 * t**3 / 27 + skew / 6

    low, high = (optimize.brentq(lambda m, q=q: transformed(m) - q, -200, 200) for q in (quantile, -quantile))
    student = values.mean() - quantile * error, values.mean() + quantile * error
    found = intervals.clustered(values, range(20))
    assert (found.low, found.high) == pytest.approx((min(low, student[0]), max(high, student[1])), rel=1e-9)
    assert found.high > student[1] + error  # the long tail is on this side


def test_clusters_of_unlike_sizes_have_the_jackknifes_variance():
    rng = np.random.default_rng(1)
    clusters = np.repeat(np.arange(12), rng.integers(1, 9, 12))
    values = rng.normal(size=len(clusters)) + clusters / 5
    without = np.array([values[clusters != one].mean() for one in range(12)])
    moved = 11 * (values.mean() - without)
    found = intervals.clustered(values, clusters)
    error = np.sqrt((moved**2).sum() / (12 * 11))
    assert found.high - found.low >= 2 * stats.t.ppf(0.975, 11) * error - 1e-9  # Student's and what skew adds
    skew = intervals.SKEW_OPEN * (moved**3).sum() / (12 * 11 * 10) / error**3
    assert found.low == pytest.approx(intervals._skewed(values.mean(), error, skew, 11)[0])
    weights = rng.random(len(values))
    assert intervals.clustered(values, clusters, weights=weights).mean == pytest.approx(
        np.average(values, weights=weights)
    )


def test_clusters_count_whole():
    values = np.repeat(np.random.default_rng(2).normal(size=12), 5)
    whole = intervals.clustered(values, np.repeat(range(12), 5))
    assert whole[1:] == pytest.approx(intervals.clustered(values[::5], range(12))[1:])
    assert whole.high - whole.low > 2 * np.ptp(intervals.clustered(values, range(60))[1:3])


def test_many_means_at_once_are_each_its_own():
    values, strata = np.random.default_rng(3).random((40, 5)), np.repeat(["a", "b"], [15, 25])
    values[:3, 1] = 0.0
    known = np.random.default_rng(4).random((40, 5)) < 0.9
    found = intervals.of_clusters(values * known, known, strata, (0.0, 1.0))
    for place in range(5):
        own = known[:, place]
        alone = intervals.clustered(values[own, place], np.arange(40)[own], strata[own], bounds=(0.0, 1.0))
        assert [part[place] for part in found] == pytest.approx(list(alone), nan_ok=True)  # one has too few


@pytest.mark.parametrize("more, fewer, trials", [(4, 0, 40), (12, 2, 44), (1, 9, 10), (0, 1, 100), (7, 7, 30)])
def test_tangos_interval_is_where_the_constrained_score_test_accepts(more, fewer, trials):
    """The likelihood under a given difference is maximised by search, not by Tango's formula."""
    low, high, p = intervals.tango(more, fewer, trials)
    assert p == pytest.approx(stats.chi2.sf((more - fewer) ** 2 / (more + fewer), 1))

    def score(delta):
        def loss(share):  # of pairs (0, 1)
            rest = 1 - 2 * share - delta
            seen = xlogy((more, fewer, trials - more - fewer), (share + delta, share, rest))
            return -seen.sum()

        limits = max(1e-12, 1e-12 - delta), (1 - delta) / 2 - 1e-12
        share = optimize.minimize_scalar(loss, bounds=limits, method="bounded", options={"xatol": 1e-12}).x
        return (more - fewer - trials * delta) / np.sqrt(trials * (2 * share + delta - delta**2))

    # the search for the share ends about 1e-8 from the optimum
    assert (score(low), score(high)) == pytest.approx((1.959964, -1.959964), abs=1e-3)


def test_a_few_discordant_pairs_are_judged_by_a_score_interval():
    found = compared([0.0] * 4 + [1.0] * 36, [1.0] * 40)
    assert found.difference == -0.1 and agree(found)
    found = compared([0.0] * 3 + [1.0] * 37, [1.0] * 40)
    assert found.interval[1] > 0 and found.p == pytest.approx(0.0833, abs=1e-4)  # three of forty are no proof


def test_no_deviation_is_not_certainty():
    same = compared([0.3] * 30, [0.3] * 30)
    assert same.interval[1] == -same.interval[0] == pytest.approx(1 - 0.025 ** (1 / 30)) and same.p == 1
    lost = compared([0.0] * 10, [1.0] * 10)
    assert lost.interval[0] == -1 and lost.interval[1] < 0 and lost.p == pytest.approx(2 / 2**10)  # all signs alike
    beyond = compared([0.0] * 30, [9.0] * 30)  # scores without bounds that none of thirty shows anything of
    assert beyond.interval is None and np.isnan(beyond.p)


def test_scores_in_the_unit_interval_are_treated_alike_whatever_they_are():
    for scores in (np.full(12, 0.5), np.ones(12), np.linspace(0, 1, 12)):
        low, high = intervals.mean_interval(pd.Series(scores), pd.Series(range(12)), ONE[:12])
        assert 0 <= low < high <= 1
    few = [intervals.mean_interval(pd.Series(s), pd.Series(range(4)), ONE[:4]) for s in ([1, 1, 1, 0], [1, 1, 1, 0.2])]
    assert few[0] == intervals.wilson(3, 4) and few[1] == intervals.wilson(3.2, 4)
    assert intervals.mean_interval(pd.Series([0.0] * 12), pd.Series(range(12)), ONE[:12], bounded=False) is None


def test_one_cells_scores_do_not_decide_what_the_task_scores():
    """Twelve zeros of a score from 0 to 100 are no proportion; the run's other rows tell."""
    cells = [("full", 40.0), ("h2o", 0.0)]
    rows = pd.concat([frame([score] * 12).assign(method=name, reference=name == "full") for name, score in cells])
    sizes = dict.fromkeys(("kept_fraction", "kept_entries", "prompt_tokens", "kv_bytes", "prefill_s"), 1.0)
    table = summarize(rows.assign(budget="0.5", error=None, **sizes)).set_index("method")
    assert np.isnan(table.loc["h2o", "low"]) and np.isnan(table.loc["h2o", "p"])


def test_fewer_than_ten_clusters_have_neither_interval_nor_p():
    assert np.isnan(intervals.clustered(np.arange(9.0), range(9))[1:]).all()
    assert not np.isnan(intervals.clustered(np.arange(10.0), range(10))[1:]).any()
    strata = ["a"] * 30 + ["b"] * 9
    assert np.isnan(intervals.clustered(np.arange(39.0), range(39), strata)[1:]).all()
    assert compared([1.0] * 9, [0.0] * 9).interval is None


def test_proportions_of_prompts_that_are_asked_often():
    """Each of twenty prompts at six budgets, right at all or at none: twenty items, not 120."""
    prompts = pd.Series(np.repeat(range(20), 6))
    low, high = intervals.proportion_interval(prompts < 10, prompts)
    narrow, wide = intervals.wilson(60, 120), intervals.wilson(8, 16)
    assert high - low > 2 * (narrow[1] - narrow[0]) and (low, high) == pytest.approx(wide, abs=0.02)
    assert intervals.proportion_interval(prompts < 20, prompts) == intervals.wilson(20, 20)
    assert intervals.proportion_interval(pd.Series([True, False]), pd.Series([1, 2])) == intervals.wilson(1, 2)
    assert intervals.proportion_interval(pd.Series([True, False]), pd.Series([1, 1])) == intervals.wilson(0.5, 1)
    spread = pd.Series(np.tile([True, False], 60))  # every prompt half right: no wider than 120 items
    assert intervals.proportion_interval(spread, prompts) == pytest.approx(intervals.wilson(60, 120))


KINDS = {
    "zeros and ones": st.sampled_from([0.0, 1.0]),
    "F1": st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1, width=16)),
    "likelihoods": st.floats(-8, 8, width=16),
}


@settings(max_examples=100, deadline=None)
@given(st.data(), st.sampled_from([*KINDS]), st.integers(10, 40), st.sampled_from([1, 3]), st.sampled_from([1, 2]))
def test_an_interval_excludes_zero_exactly_where_its_test_rejects(data, kind, number, each, sets):
    """Any scores, single items or clusters, one data set or two."""
    items, rare = number * each * sets, data.draw(st.booleans())
    scores = data.draw(st.lists(KINDS[kind], min_size=items, max_size=items))
    other = data.draw(st.lists(KINDS[kind], min_size=items, max_size=items))
    if rare:  # all but a few pairs are alike
        other = [*other[:4], *scores[4:]]
    clusters, strata = np.arange(items) // each, np.arange(items) // each % sets
    assert agree(compared(scores, other, clusters, strata))


@pytest.mark.parametrize("kind", ["normal", "log-normal", "rare", "F1"])
def test_random_data_agree_too(kind):
    """As hypothesis seldom draws them: differences near the edge of significance."""
    rng, rejected = np.random.default_rng(5), 0
    for number in (10, 13, 30):
        for _ in range(30):
            shift = 2.2 / np.sqrt(number)
            made = {
                "normal": rng.normal(shift, 1, number),
                "log-normal": rng.lognormal(0, 1, number) - np.exp(0.5) + 2 * shift,
                "rare": -(rng.random(number) < 4.5 / number).astype(float),
                "F1": np.clip(rng.normal(0.3 * shift, 0.3, number), -1, 1) * (rng.random(number) < 0.7),
            }[kind]
            found = compared(np.maximum(made, 0), np.maximum(-made, 0))
            assert agree(found)
            rejected += found.p < 0.05
    assert 15 < rejected < 75


def test_reports_show_the_interval_of_the_test():
    """A run's table, its tests and a comparison of two methods come from one construction."""
    rng = np.random.default_rng(6)
    cells = [(name, "1.0" if name == "full" else "0.5") for name in ("full", "h2o", "snapkv")]
    rows = [frame((rng.random(20) < share).astype(float)) for share in (0.9, 0.6, 0.5)]
    rows = [
        part.assign(method=name, budget=budget, reference=name == "full")
        for part, (name, budget) in zip(rows, cells, strict=True)
    ]
    sizes = dict.fromkeys(("kept_fraction", "kept_entries", "prompt_tokens", "kv_bytes", "prefill_s"), 1.0)
    rows = pd.concat(rows, ignore_index=True).assign(error=None, **sizes)
    shown = perplexity.shown(rows).set_index("method")
    tested = significance.compared(rows).set_index("method")
    for name in ("h2o", "snapkv"):
        line = tested.loc[name]
        assert line["difference_low"] == shown.loc[name, "difference_low"]
        assert (line["difference_low"] > 0 or line["difference_high"] < 0) == (line["p"] < 0.05)
    line = significance.versus(rows, "h2o", "snapkv", "0.5")
    assert (line["low"] > 0 or line["high"] < 0) == (line["p"] < 0.05)
