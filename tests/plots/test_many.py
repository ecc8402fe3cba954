"""The curve of many methods: a panel for each, and nothing lost or moved against one picture."""

import numpy as np
import pytest

from pvcbench.plots import many_methods, run_figures
from pvcbench.stats import ranking, summaries
from pvcbench.stats.failures import typed
from rows import needle_rows, table

NAMES = ("full", "random", "oracle_answer", *(f"method{number}" for number in range(7)))


@pytest.fixture(scope="module")
def rows(request):
    """Rows of one method under nine names and of the full cache; `method0` ends at its reach."""
    made = []
    for name in NAMES:
        copies = needle_rows(repeats=2, methods=("full",) if name == "full" else ("h2o",), budgets=(0.1, 0.4))
        made += [{**row, "method": name if row["method"] == "h2o" else "full"} for row in copies]
    rows = table([row for row in made if row["method"] != "full"] + needle_rows(repeats=2, methods=("full",)))
    low = (rows["method"] == "method0") & (rows["budget"] == "0.1")
    rows.loc[low, ["score", "kept_fraction"]] = np.nan
    rows.loc[low, "error"] = "below method0's reach of 37.5%"
    zero = rows["method"] == "method1"
    rows.loc[zero, "score"] = 0.0
    rows["reads"] = np.where(rows["method"] == "oracle_answer", "answer", "prompt")
    return typed(rows.drop(columns=["reason", "reach"]))


def test_each_method_has_its_panel_best_first(rows):
    figure = run_figures.curve(rows)
    titles = [axes.get_title() for axes in figure.axes]
    assert sorted(titles) == sorted(set(NAMES) - {"full"}) and titles[-1] == "method1"
    same = rows[(rows["method"] != "full") & (rows["budget"] == "0.4")]  # method0 has no score at 10%
    assert same.groupby("method")["score"].mean()[titles].is_monotonic_decreasing


def test_points_and_intervals_are_those_of_the_table(rows):
    cells = summaries.summarize(rows).set_index(["method", "budget"])
    for axes in run_figures.curve(rows).axes:
        name = axes.get_title()
        own = next(line for line in axes.get_lines() if line.get_marker() not in ("None", "", "_"))
        wanted = cells.loc[name][cells.loc[name]["score"].notna()].sort_values("kept_fraction")
        np.testing.assert_allclose(own.get_xdata(), 100 * wanted["kept_fraction"].astype(float))
        np.testing.assert_allclose(own.get_ydata(), wanted["score"].astype(float))
        [bars] = axes.collections
        ends = np.array([segment[:, 1] for segment in bars.get_segments()])
        np.testing.assert_allclose(ends, wanted[["low", "high"]].astype(float))


def test_floor_reference_and_reach_are_in_the_panels(rows):
    figure = run_figures.curve(rows)
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert said == ["full cache", "random", "oracle_answer", "other methods", "bars: 95% intervals"]
    for axes in figure.axes:
        colours = [line.get_color() for line in axes.get_lines()]
        assert ranking.leaking(rows) == {"oracle_answer"} and colours.count("#CFCFCF") == 7
        notes = [text.get_text() for text in axes.texts]
        assert notes == (["reach 38%"] if axes.get_title() == "method0" else [])


def test_few_methods_share_one_picture(rows):
    few = rows[rows["method"].isin(NAMES[:8])]
    assert (
        not many_methods.too_many(few) and len([axes for axes in run_figures.curve(few).axes if axes.get_title()]) == 1
    )
