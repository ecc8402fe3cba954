"""Intervals against known values and against brute force."""

import numpy as np
import pandas as pd
import pytest

from pvcbench import stats


def rows(scores, method="h2o", budget="0.5", reference=False, clusters=None):
    """Rows of one cell with everything summarize needs."""
    return pd.DataFrame(
        {
            "sample": [str(i) for i in range(len(scores))],
            "cluster": clusters or [str(i) for i in range(len(scores))],
            "prompt_sha256": [f"hash{i}" for i in range(len(scores))],
            "method": method,
            "budget": budget,
            "reference": reference,
            "score": scores,
            "error": None,
            "kept_fraction": 0.5,
            "kept_entries": 10.0,
            "prompt_tokens": 20,
            "kv_bytes": 2**20,
            "prefill_s": 1.0,
        }
    )


def test_wilson_at_the_edges():
    low, high = stats.wilson(200, 200)
    assert (round(low, 3), high) == (0.981, 1.0)  # the value protocols for published tables name
    assert stats.wilson(0, 10)[0] == 0.0 and stats.wilson(0, 10)[1] == pytest.approx(0.2775, abs=1e-4)
    assert stats.wilson(0, 0) is None


def test_bootstrap_resamples_clusters_whole():
    values = np.repeat([0.0, 1.0], 50)
    single = stats.cluster_bootstrap(values, np.arange(100))
    grouped = stats.cluster_bootstrap(values, np.repeat(np.arange(10), 10))  # ten clusters, all alike inside
    assert grouped[1] - grouped[0] > 2 * (single[1] - single[0])
    rng = np.random.default_rng(1)
    means = [rng.choice([0.0, 1.0], 10).mean() for _ in range(4000)]
    # percentiles of a ten-fold coin move in steps of 0.1; one step is the Monte Carlo error of both sides
    assert grouped == pytest.approx(tuple(np.quantile(means, (0.025, 0.975))), abs=0.1)


def test_fewer_than_ten_clusters_get_no_interval():
    assert stats.cluster_bootstrap(np.arange(9.0), np.arange(9)) is None
    assert stats.cluster_bootstrap(np.arange(10.0), np.arange(10)) is not None


def test_identical_differences_do_not_claim_certainty():
    low, high = stats.cluster_bootstrap(np.zeros(30), np.arange(30))
    assert low == -high and high == pytest.approx(1 - 0.025 ** (1 / 30), abs=1e-6)
    low, high = stats.cluster_bootstrap(-np.ones(30), np.arange(30))
    assert low == -1.0 and -1.0 < high < -0.7


def test_wilson_only_for_single_items_of_zeros_and_ones():
    scores = pd.Series([0.0, 1.0] * 10)
    assert stats.mean_interval(scores, pd.Series(range(20))) == stats.wilson(10, 20)
    assert stats.mean_interval(scores, pd.Series([i // 2 for i in range(20)])) != stats.wilson(10, 20)
    assert stats.mean_interval(scores / 2, pd.Series(range(20))) != stats.wilson(10, 20)


def test_paired_difference_needs_the_same_prompts():
    cell, reference = rows([1.0, 0.0] * 6), rows([1.0] * 12, "full", "1.0", True)
    value, (low, high), pairs = stats.paired_difference(cell, reference)
    assert value == -0.5 and low < -0.5 < high and pairs == 12
    reference["prompt_sha256"] = "other"
    with pytest.raises(ValueError, match="different prompts"):
        stats.paired_difference(cell, reference)


def test_same_resamples_for_every_method():
    rng = np.random.default_rng(0)
    values = rng.normal(size=40)
    assert stats.cluster_bootstrap(values + 3, np.arange(40)) == pytest.approx(
        tuple(end + 3 for end in stats.cluster_bootstrap(values, np.arange(40))), abs=1e-9
    )


def test_summary_keeps_failed_cells_and_partial_ones():
    reference = rows([1.0] * 12, "full", "1.0", True)
    failed = rows([np.nan] * 12, "pvc", "0.05").assign(error="below PvC's reach of 38.0%")
    partial = rows([1.0] * 12, "h2o", "0.5")
    partial.loc[0, ["score", "error"]] = [np.nan, "OutOfMemoryError: no"]
    table = stats.summarize(pd.concat([failed, partial, reference], ignore_index=True)).set_index("method")
    assert table.index[0] == "full"
    assert table.loc["pvc", "samples"] == 0 and "reach" in table.loc["pvc", "error"]
    assert table.loc["h2o", "samples"] == 11 and table.loc["h2o", "errors"] == 1 and table.loc["h2o", "pairs"] == 11
