"""Sign-flip tests against enumeration, Holm's step-down against hand values, and both in a run's summary."""

import itertools

import numpy as np
import pandas as pd
import pytest
from rows import needle_rows, table

from pvcbench import significance


def test_holm_by_hand():
    adjusted = significance.holm([0.01, 0.04, 0.03, 0.005])
    assert adjusted == pytest.approx([0.03, 0.06, 0.06, 0.02])  # 3 x 0.01; 2 x 0.03, which 0.04 must not undercut
    assert significance.holm([0.6, 0.5]) == pytest.approx([1.0, 1.0])
    assert significance.holm([]).tolist() == []


def test_holm_leaves_out_what_was_not_tested():
    adjusted = significance.holm([0.02, float("nan"), 0.03])
    assert adjusted[[0, 2]] == pytest.approx([0.04, 0.04]) and np.isnan(adjusted[1])


def enumerated(values):
    """The two-sided p-value over all sign patterns, as twice the smaller tail."""
    sums = np.array([np.dot(signs, values) for signs in itertools.product((1, -1), repeat=len(values))])
    tails = (sums <= np.sum(values) + 1e-9).mean(), (sums >= np.sum(values) - 1e-9).mean()
    return min(1.0, 2 * min(tails))


def test_few_clusters_are_enumerated():
    values = np.random.default_rng(0).normal(0.5, 1, 10)
    assert significance.sign_flip(values, range(10)) == pytest.approx(enumerated(values))
    assert significance.sign_flip(-np.ones(10), range(10)) == pytest.approx(2 / 1024)


def test_many_clusters_are_drawn_and_the_observed_pattern_counts():
    values = np.random.default_rng(0).normal(0.4, 1, 14)
    assert significance.sign_flip(values, range(14)) == pytest.approx(enumerated(values), abs=0.01)
    assert significance.sign_flip(np.ones(60), range(60)) == pytest.approx(2 / 10000)


def test_clusters_flip_whole():
    values, clusters = np.repeat(-np.ones(10), 6), np.repeat(range(10), 6)
    assert significance.sign_flip(values, clusters) == pytest.approx(2 / 1024)
    assert significance.sign_flip(values, range(60)) < 1 / 1024


def test_strata_weigh_alike():
    rng = np.random.default_rng(1)
    small, large = rng.normal(1.0, 1, 10), rng.normal(-0.1, 1, 100)
    values, strata = np.concatenate([small, large]), np.repeat(["a", "b"], [10, 100])
    shares = np.concatenate([small / 10, large.reshape(10, 10).sum(1) / 100])
    rng = np.random.default_rng(2)
    sums = (rng.choice([1, -1], (20000, 20)) * shares).sum(1)
    expected = 2 * min((sums <= shares.sum()).mean(), (sums >= shares.sum()).mean())
    clusters = [*range(10), *np.repeat(range(10, 20), 10)]
    assert significance.sign_flip(values, clusters, strata) == pytest.approx(expected, abs=0.015)


def test_no_test_where_there_is_nothing_to_test():
    assert np.isnan(significance.sign_flip(np.ones(9), range(9)))
    assert np.isnan(significance.sign_flip(np.ones(29), range(29), ["a"] * 20 + ["b"] * 9))
    assert significance.sign_flip(np.zeros(20), range(20)) == 1.0
    assert significance.sign_flip([1.0] + [0.0] * 19, range(20)) == 1.0  # either sign of one cluster is as likely


def test_the_level_holds_when_nothing_differs():
    rng = np.random.default_rng(3)
    found = [significance.sign_flip(rng.normal(size=10), range(10)) for _ in range(100)]
    assert np.mean(np.array(found) < 0.05) <= 0.11  # 5% and not three standard errors more


def test_a_runs_summary_has_both():
    rows = table(needle_rows(repeats=4, methods=("full", "h2o", "random"), budgets=(0.1, 0.55)))
    found = significance.compared(rows).set_index(["method", "budget"])
    assert np.isnan(found.loc[("full", "1.0"), "p"])
    tested = found[found["p"].notna()]
    assert len(tested) == 4 and (tested["p_holm"] >= tested["p"]).all()
    lowest = tested["p"].min()
    assert tested["p_holm"].min() == pytest.approx(min(1, 4 * lowest))
    scores = rows.pivot(index="sample", columns=["method", "budget"], values="score").astype(float)
    difference = scores["random", "0.1"] - scores["full", "1.0"]
    assert found.loc[("random", "0.1"), "p"] == significance.sign_flip(difference, difference.index)
    assert found.loc[("random", "0.1"), "p_holm"] < 0.05


def test_failed_cells_are_no_tests():
    rows = table(needle_rows(repeats=4, methods=("full", "pvc"), budgets=(0.1, 0.55)))
    found = significance.compared(rows).set_index(["method", "budget"])
    assert np.isnan(found.loc[("pvc", "0.1"), "p_holm"])
    assert found.loc[("pvc", "0.55"), "p_holm"] == found.loc[("pvc", "0.55"), "p"]  # the only one


def test_without_a_full_cache_nothing_is_compared():
    rows = table(needle_rows(repeats=4, methods=("h2o",), budgets=(0.1,)))
    assert isinstance(found := significance.compared(rows), pd.DataFrame) and found["p"].isna().all()
