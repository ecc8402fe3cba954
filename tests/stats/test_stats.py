"""Summaries of runs; their intervals are held to brute force in test_intervals.py."""

import numpy as np
import pandas as pd
import pytest

from pvcbench.stats import summaries


def rows(scores, method="h2o", budget="0.5", reference=False, clusters=None):
    """Rows of one cell with everything summarize needs."""
    return pd.DataFrame(
        {
            "sample": [str(i) for i in range(len(scores))],
            "cluster": clusters or [str(i) for i in range(len(scores))],
            "prompt_sha256": [f"hash{i}" for i in range(len(scores))],
            "stratum": "",
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
    low, high = summaries.wilson(200, 200)
    assert (round(low, 3), high) == (0.981, 1.0)  # the value protocols for published tables name
    assert summaries.wilson(0, 10)[0] == 0.0 and summaries.wilson(0, 10)[1] == pytest.approx(0.2775, abs=1e-4)
    assert summaries.wilson(0, 0) is None


def test_wilson_only_for_single_items_of_zeros_and_ones():
    scores, one = pd.Series([0.0, 1.0] * 10), pd.Series([""] * 20)
    assert summaries.mean_interval(scores, pd.Series(range(20)), one) == summaries.wilson(10, 20)
    assert summaries.mean_interval(scores, pd.Series([i // 2 for i in range(20)]), one) != summaries.wilson(10, 20)
    assert summaries.mean_interval(scores / 2, pd.Series(range(20)), one) != summaries.wilson(10, 20)
    assert summaries.mean_interval(scores, pd.Series(range(20)), pd.Series(["a", "b"] * 10)) != summaries.wilson(10, 20)


def test_paired_difference_needs_the_same_prompts():
    cell, reference = rows([1.0, 0.0] * 6), rows([1.0] * 12, "full", "1.0", True)
    value, (low, high), pairs = summaries.paired_difference(cell, reference)
    assert value == -0.5 and low < -0.5 < high and pairs == 12
    reference["prompt_sha256"] = "other"
    with pytest.raises(ValueError, match="different prompts"):
        summaries.paired_difference(cell, reference)


def test_summary_keeps_failed_cells_and_partial_ones():
    reference = rows([1.0] * 12, "full", "1.0", True)
    failed = rows([np.nan] * 12, "pvc", "0.05").assign(error="below PvC's reach of 38.0%")
    partial = rows([1.0] * 12, "h2o", "0.5")
    partial.loc[0, ["score", "error"]] = [np.nan, "OutOfMemoryError: no"]
    table = summaries.summarize(pd.concat([failed, partial, reference], ignore_index=True)).set_index("method")
    assert table.index[0] == "full"
    assert table.loc["pvc", "samples"] == 0 and "reach" in table.loc["pvc", "error"]
    assert table.loc["h2o", "samples"] == 11 and table.loc["h2o", "errors"] == 1 and table.loc["h2o", "pairs"] == 11


def test_the_headline_is_of_the_chosen_sets_and_the_breakdown_names_all():
    first, second = rows([1.0] * 12 + [0.0] * 12), rows([0.5] * 24, "full", "1.0", True)
    table = pd.concat([first, second], ignore_index=True)
    table["stratum"] = ["a"] * 12 + ["zh"] * 12 + ["a"] * 12 + ["zh"] * 12
    table["sample_info"] = [{"group": g, "headline": g == "A"} for g in (["A"] * 12 + ["Z"] * 12) * 2]
    assert summaries.summarize(table).set_index("method").loc["h2o", "score"] == 1.0
    parts = summaries.breakdown(table).set_index(["kind", "part", "method"])["score"]
    assert (
        parts["set", "zh", "h2o"] == 0.0 and parts["group", "A", "h2o"] == 1.0 and parts["all", "mean", "full"] == 0.5
    )
    unmarked = table.assign(sample_info=[{}] * len(table))
    assert summaries.summarize(unmarked).set_index("method").loc["h2o", "score"] == 0.5
