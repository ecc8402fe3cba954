"""The dot plots of many methods: a panel for each size, one order, and nothing lost or moved against the table."""

import numpy as np
import pytest
from matplotlib.colors import to_rgba

from cells import rows_of
from pvcbench.plots import many_methods, run_figures
from pvcbench.stats import ranking, summaries, ties
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


def marks(axes):
    """The points of a panel by the line that they stand on: (value, marker's face)."""
    points = [line for line in axes.get_lines() if line.get_marker() not in ("None", "", None)]
    return {int(line.get_ydata()[0]): line.get_xdata()[0] for line in points if len(line.get_xdata()) == 1}


def names_of(axes):
    return [label.get_text().split(" (")[0] for label in axes.get_yticklabels()]


def test_a_panel_per_size_and_the_order_of_the_middle_one(rows):
    panels = run_figures.curve(rows).axes
    assert [axes.get_title() for axes in panels] == ["10% of the cache", "40% of the cache"]
    names = names_of(panels[0])
    assert names[-2:] == ["random", "oracle_answer"] and set(names) == set(NAMES) - {"full"}
    means = rows[rows["budget"] == "0.4"].groupby("method")["score"].mean()  # the middle of two sizes: the larger
    assert means[names[:-2]].is_monotonic_decreasing and names[-3] == "method1"
    [rule] = [line for line in panels[0].get_lines() if list(line.get_ydata()) == [len(names) - 1.5] * 2]
    assert rule.get_color() == "#000000"


def test_points_and_intervals_are_those_of_the_table(rows):
    cells = summaries.summarize(rows).set_index(["method", "budget"])
    panels = run_figures.curve(rows).axes
    names = names_of(panels[0])  # which stand at the left alone
    for axes, budget in zip(panels, ("0.1", "0.4"), strict=True):
        drawn = marks(axes)
        wanted = {names.index(name): cells.loc[(name, budget), "score"] for name in names}
        assert drawn == pytest.approx({place: value for place, value in wanted.items() if not np.isnan(value)})
        ends = {}
        for bars in axes.collections:
            (segment,) = bars.get_segments()
            ends[int(segment[0, 1])] = tuple(segment[:, 0])
        for place, found in ends.items():
            assert found == pytest.approx(tuple(cells.loc[(names[place], budget), ["low", "high"]].astype(float)))
        assert set(ends) == set(drawn)


def test_absent_cells_say_why_and_the_full_cache_and_the_floor_are_lines(rows):
    figure = run_figures.curve(rows)
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert said[:3] == ["full cache", "random, the floor", "mean, 95% interval"]
    assert [[text.get_text() for text in axes.texts] for axes in figure.axes] == [["cannot go below 38%"], []]
    full, floor = (rows[rows["method"] == name] for name in ("full", "random"))
    for axes, budget in zip(figure.axes, ("0.1", "0.4"), strict=True):
        upright = {line.get_xdata()[0] for line in axes.get_lines() if len(line.get_xdata()) == 2}
        assert {full["score"].mean(), floor[floor["budget"] == budget]["score"].mean()} <= upright
    assert ranking.leaking(rows) == {"oracle_answer"}


def test_incomplete_cells_are_crossed_and_stand_behind_the_complete_ones(rows):
    some = rows.copy()
    lost = some[(some["method"] == "method2") & (some["budget"] == "0.4")].index[:3]
    some.loc[lost, "score"], some.loc[lost, "error"] = np.nan, "RuntimeError: none"
    figure = run_figures.curve(some)
    assert names_of(figure.axes[0])[-3] == "method2"
    crosses = [line for line in figure.axes[1].get_lines() if line.get_label() == "_incomplete"]
    assert len(crosses) == 2 and {int(line.get_ydata()[0]) for line in crosses} == {len(NAMES) - 4}
    assert any("not ranked" in text.get_text() for text in figure.legends[0].get_texts())


def test_shaded_are_those_that_no_test_tells_from_the_best():
    """Thirty samples: 30, 29 and 10 right. The second is not told apart, the third is."""
    cells = {"full": 30, "a": 30, "b": 29, "c": 10}
    made = rows_of({name: [1.0] * hits + [0.0] * (30 - hits) for name, hits in cells.items()}, [100] * 30)
    table = summaries.summarize(made)
    budget = table[table["method"] == "a"]["budget"].iloc[0]
    assert ties.with_the_best(made, table, budget) == {"a", "b"}
    figure = many_methods.dots(made, table, ("score", "low", "high"), "score", "highest")
    shades = [
        patch for patch in figure.axes[0].patches if to_rgba(patch.get_facecolor()) == to_rgba(many_methods.SHADE)
    ]
    assert sorted(patch.get_y() + 0.5 for patch in shades) == [0, 1]
    few = made[made["sample"].isin(made["sample"].unique()[:5])]
    assert ties.with_the_best(few, table.assign(leaks=table["method"].isin(["a", "b"])), budget) == set()


def test_few_methods_share_one_picture(rows):
    few = rows[rows["method"].isin(NAMES[:8])]
    assert not many_methods.too_many(few) and len(run_figures.curve(few).axes) == 1


def test_out_of_reach_is_no_failure_and_a_size_of_its_own_is_no_share(rows):
    """Out of reach without a number is still said; the panel of one method's own size holds that method alone."""
    rows = rows.copy()
    own = rows["method"] == "method0"
    low = own & (rows["budget"] == "0.1")
    rows.loc[low, "error"] = "below the 256 entries that it always keeps"
    rows.loc[low, ["reason", "reach"]] = ["out of reach", None]
    rows.loc[(rows["method"] == "method2") & (rows["budget"] == "0.4"), "budget"] = "lazy>0.9"
    rows = typed(rows)
    figure = run_figures.curve(rows)
    panels = {axes.get_title(): axes for axes in figure.axes}
    assert "lazy>0.9" in panels and len(marks(panels["lazy>0.9"])) == 1 and not panels["lazy>0.9"].texts
    words = [text.get_text() for text in panels["10% of the cache"].texts]
    assert "out of reach" in words and "failed" not in words


def test_a_panel_per_task_shows_each_tasks_own_values_groups_and_gaps(rows):
    """Two tasks: the second lacks a method, has other scores, and its group is of all its methods, named or not."""
    cells = {"full": 30, "method3": 29, "method4": 28, "method5": 5, "random": 0, "oracle_answer": 30}
    other = rows_of({name: [1.0] * hits + [0.0] * (30 - hits) for name, hits in cells.items()}, [100] * 30)
    other = other.assign(leaks=other["method"] == "oracle_answer")
    budget = other[other["method"] == "method3"]["budget"].iloc[0]
    first = rows.assign(budget=rows["budget"].replace("0.4", budget), leaks=rows["method"] == "oracle_answer")
    tables = [summaries.summarize(made) for made in (first, other)]
    tasks = [
        many_methods.Panel(made, table, title, f"axis of {title}")
        for made, table, title in zip((first, other), tables, ("one", "two"), strict=True)
    ]
    names = ["method4", "method6", "method5", "random", "oracle_answer"]
    figure = many_methods.by_task(tasks, budget, names, "what it is")
    one, two = figure.axes
    assert [axes.get_title() for axes in (one, two)] == ["one", "two"] and two.get_xlabel() == "axis of two"
    assert names_of(one) == names and figure.legends[0].get_title().get_text() == "what it is"
    for axes, own in zip((one, two), tables, strict=True):
        known = own[own["budget"] == budget].set_index("method")["score"]
        assert marks(axes) == pytest.approx({names.index(name): known[name] for name in names if name in known})
    assert [text.get_text() for text in two.texts] == ["not run"] and two.texts[0].get_position()[1] == 1
    assert "method3" in ties.with_the_best(other, tables[1], budget)  # the best, which the picture does not name
    shades = [patch for patch in two.patches if to_rgba(patch.get_facecolor()) == to_rgba(many_methods.SHADE)]
    assert [patch.get_y() + 0.5 for patch in shades] == [0]  # method4 ties with it, method5 does not
