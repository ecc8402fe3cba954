"""Holm's step-down against hand values, and the tests of a run's summary."""

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.contingency_tables import mcnemar

from pvcbench.stats import perplexity, significance
from rows import needle_rows, table


def test_holm_by_hand():
    adjusted = significance.holm([0.01, 0.04, 0.03, 0.005])
    assert adjusted == pytest.approx([0.03, 0.06, 0.06, 0.02])  # 3 x 0.01; 2 x 0.03, which 0.04 must not undercut
    assert significance.holm([0.6, 0.5]) == pytest.approx([1.0, 1.0])
    assert significance.holm([]).tolist() == []


def test_holm_leaves_out_what_was_not_tested():
    adjusted = significance.holm([0.02, float("nan"), 0.03])
    assert adjusted[[0, 2]] == pytest.approx([0.04, 0.04]) and np.isnan(adjusted[1])


def test_a_runs_summary_has_both():
    rows = table(needle_rows(repeats=4, methods=("full", "h2o", "random"), budgets=(0.1, 0.55)))
    found = significance.compared(rows).set_index(["method", "budget"])
    assert np.isnan(found.loc[("full", "1.0"), "p"])
    tested = found[found["p"].notna()]
    assert len(tested) == 4 and (tested["p_holm"] >= tested["p"]).all()
    lowest = tested["p"].min()
    assert tested["p_holm"].min() == pytest.approx(min(1, 4 * lowest))
    scores = rows.pivot(index="sample", columns=["method", "budget"], values="score").astype(float)
    more, fewer = ((sign * (scores["random", "0.1"] - scores["full", "1.0"]) > 0).sum() for sign in (1, -1))
    counts = [[0, fewer], [more, 0]]
    expected = mcnemar(counts, exact=False, correction=False).pvalue
    assert found.loc[("random", "0.1"), "p"] == pytest.approx(expected)
    assert found.loc[("random", "0.1"), "p_holm"] < 0.05


def test_a_summary_at_hand_is_taken_and_left_as_it_is():
    rows = table(needle_rows(repeats=4, methods=("full", "h2o", "random"), budgets=(0.1, 0.55)))
    summary = perplexity.shown(rows)
    summary.loc[1, "complete"] = False  # which costs this cell its test
    before = summary.copy()
    found = significance.compared(rows, summary)
    assert np.isnan(found.loc[1, "p"]) and found["p"].notna().sum() == 3
    assert found["p_holm"].min() == pytest.approx(min(1, 3 * found["p"].min()))  # of three tests, not of four
    pd.testing.assert_frame_equal(summary, before)


def test_failed_cells_are_no_tests():
    rows = table(needle_rows(repeats=4, methods=("full", "pvc"), budgets=(0.1, 0.55)))
    found = significance.compared(rows).set_index(["method", "budget"])
    assert np.isnan(found.loc[("pvc", "0.1"), "p_holm"])
    assert found.loc[("pvc", "0.55"), "p_holm"] == found.loc[("pvc", "0.55"), "p"]  # the only one


def test_without_a_full_cache_nothing_is_compared():
    rows = table(needle_rows(repeats=4, methods=("h2o",), budgets=(0.1,)))
    assert isinstance(found := significance.compared(rows), pd.DataFrame) and found["p"].isna().all()


def test_many_comparisons_can_still_be_told_apart():
    """Thirty answers lost of thirty among 400 comparisons: the smallest p-value of 9,999 random flips could not."""
    rows = [row | {"score": 1.0 if row["reference"] else 0.0} for row in needle_rows(methods=("full", "h2o"))]
    p = significance.compared(table(rows))["p"].dropna()
    others = np.linspace(0.1, 1, 400 - len(p))
    assert (significance.holm([*p, *others])[: len(p)] < 0.05).all()
