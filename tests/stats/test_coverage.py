"""The simulation of coverage: a small run of it, its files, and that it simulates the intervals that runs get."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pvcbench.stats import intervals
from scripts import coverage

COMMITTED = Path(__file__).parents[2] / "results" / "bench" / "coverage.json"
RARE = {"rare differences, clusters of four", "pairs: 8% lost, 1% won (Tango)"}  # most draws of ten show none at all


@pytest.mark.parametrize("kind", sorted(set(coverage.KINDS) - {"one prompt, six budgets"}))
def test_intervals_hold_the_truth_as_often_as_they_say(kind):
    for line in coverage.simulate([kind], (10, 30), 1500):
        error = np.sqrt(0.93 * 0.07 / 1500)  # binomial; four of them, for forty looks at a share that may be 0.93
        assert line["coverage"] > 0.93 - 4 * error and line["without"] == 0
        if kind not in RARE:
            assert line["coverage"] < 0.99 + 4 * np.sqrt(0.99 * 0.01 / 1500)


def test_pooled_budgets_of_a_prompt_are_covered_too():
    (line,) = coverage.simulate(["one prompt, six budgets"], (20,), 400)
    assert 0.93 - 4 * np.sqrt(0.93 * 0.07 / 400) < line["coverage"] < 1


def test_the_bootstrap_it_replaces_is_too_narrow():
    """The same data and the same judge find the faults that the intervals were replaced for."""
    (line,) = coverage.simulate(["log-normal values"], (10,), 1500)
    assert line["bootstrap"] < 0.85 and line["coverage"] > 0.9


def test_simulated_intervals_are_those_of_a_comparison():
    values, _ = coverage.losses(0.8)(np.random.default_rng(0), 20, 5)
    found = intervals.of_clusters(values, bounds=intervals.DIFFERENCES)
    for place in range(5):
        cell = pd.DataFrame({"sample": range(20), "score": 1 + values[:, place], "prompt_sha256": "same"})
        cell = cell.assign(cluster=cell["sample"], stratum="")
        full = cell.assign(score=1.0)[["sample", "score", "prompt_sha256"]]
        assert intervals.paired(cell, full).interval == pytest.approx((found.low[place], found.high[place]))


def test_the_committed_simulation_lies_in_the_band():
    found = json.loads(COMMITTED.read_text(encoding="utf-8"))
    table = pd.DataFrame(found["lines"])
    assert set(table["kind"]) == set(coverage.KINDS) and set(table["clusters"]) == {10, 20, 30, 100}
    low, high = coverage.BAND
    assert (table["coverage"] + 2 * table["standard_error"] >= low).all()
    assert set(table[table["coverage"] - 2 * table["standard_error"] > high]["kind"]) <= RARE


def test_a_picture_has_a_panel_for_each_kind():
    kinds = ["normal values", "three unlike sets of F1", "pairs: 30% lost (Tango)"]
    figure = coverage.picture(coverage.simulate(kinds, (10, 20), 50))
    assert [axes.get_title() for axes in figure.axes] == kinds
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["10", "20"]
