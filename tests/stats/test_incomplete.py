"""A cell that lacks scores of some samples: its mean says so, and it is best of nothing, on no front and in no test."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba

from cells import a_set_failed, long_and_short, rows_of, three_of_thirty
from pvcbench.cli import closing, compare, run_table
from pvcbench.errors import UserError
from pvcbench.plots import cautions, experiment, published, run_figures
from pvcbench.report import answer, compare_methods, leaderboard, markdown_latex, scores
from pvcbench.runs import wandb_mirror
from pvcbench.stats import perplexity, ranking, significance, summaries

INPUTS = {"reach": (long_and_short, "streaming_llm", 12, 24), "three": (three_of_thirty, "random", 3, 30)}
INPUTS |= {"no rows": (lambda: three_of_thirty("none"), "random", 3, 30), "set": (a_set_failed, "tova", 16, 24)}


@pytest.fixture(params=INPUTS, ids=list(INPUTS))
def given(request):
    """Rows, the incomplete method, and how many of how many samples it answered."""
    make, method, answered, total = INPUTS[request.param]
    return SimpleNamespace(rows=make(), method=method, answered=answered, total=total)


def line_of(table, method):
    return table[table["method"] == method].iloc[0]


def crosses(axes):
    return [line for line in axes.get_lines() if line.get_label() == "_incomplete" and line.get_marker() == "x"]


# ------------------------------------------------------------------------------------------------------------ summary


def test_the_mean_says_of_how_many_and_the_low_end_counts_the_others_as_wrong(given):
    line = line_of(summaries.summarize(given.rows), given.method)
    assert (line.samples, line.asked, bool(line.complete)) == (given.answered, given.total, False)
    assert (line.pairs, line.lost) == (given.answered, given.total - given.answered)
    own = given.rows[(given.rows["method"] == given.method) & given.rows["score"].notna()]
    filled = given.rows.drop_duplicates("sample")[["sample", "cluster", "stratum"]]
    filled = filled.assign(score=filled["sample"].map(own.set_index("sample")["score"]).astype(float).fillna(0.0))
    assert line.score == 1.0
    assert line.at_worst == pytest.approx(filled.groupby("stratum")["score"].mean().mean())
    expected = summaries.mean_interval(filled["score"], filled["cluster"], filled["stratum"])
    answered = summaries.mean_interval(own["score"], own["cluster"], own["stratum"])
    if answered is None or expected is None:  # sets of eight: too few clusters for an interval
        assert np.isnan(line.low) and np.isnan(line.high)
    else:
        assert (line.low, line.high) == (expected[0], answered[1])


def test_whole_cells_are_as_they_were():
    table = summaries.summarize(rows_of({"full": [1.0] * 12, "h2o": [1.0, 0.0] * 6}, [100] * 12))
    line = line_of(table, "h2o")
    assert table["complete"].all() and (line.samples, line.asked, line.lost, line.errors) == (12, 12, 0, 0)
    assert (line.low, line.high) == summaries.wilson(6, 12) and line.at_worst == line.score == 0.5


def test_out_of_reach_of_every_prompt_is_no_failure():
    rows = rows_of({"full": [1.0] * 12, "h2o": [1.0] * 12, "pvc": [None] * 12}, [100] * 12, why="below reach of 38%")
    table = perplexity.shown(rows)
    assert cautions.of(rows, table) == [] and line_of(table, "pvc").samples == 0
    assert not crosses(run_figures.curve(rows).axes[0])


def test_likelihoods_without_bound_have_no_upper_end():
    rows = rows_of({"full": [-2.0] * 12, "h2o": [-2.9, -3.1] * 5 + [None] * 2}, [200] * 12)
    rows["token_nll"] = rows["score"].map(lambda score: None if score is None or np.isnan(score) else [-score] * 50)
    rows["sample_info"] = [{"bytes": 100}] * len(rows)
    rows["budget_entries"] = None
    table = perplexity.shown(rows)
    line = line_of(table, "h2o")
    assert line.perplexity == pytest.approx(np.exp(3)) and np.isinf(line.high) and line.low < line.score
    frame, _ = markdown_latex.scores(rows, significance.compared(rows), pd.DataFrame())
    assert "∞]" in frame[frame["method"] == "h2o"]["perplexity"].iloc[0]
    assert len(crosses(run_figures.curve(rows).axes[0])) == 1


# ------------------------------------------------------------------------------------------------- best, front, tests


def test_it_is_best_of_nothing(given):
    compared = significance.compared(given.rows)
    lines = leaderboard.lines_of(scores.run_of(given.rows), compared, pd.DataFrame(), {})
    own = next(line for line in lines if line["method"] == given.method)
    assert own["score"] == "100.0" and own["sort"]["score"] is None and not own["complete"]
    assert own["n"] == f"{given.answered} of {given.total}: incomplete, not ranked"
    found = answer.at_size(given.rows, compared, 0.4, set())
    aside = [line["method"] for line in found.aside[answer.INCOMPLETE]]
    assert given.method in aside and given.method not in [one.method for one in (*found.leading, *found.behind)]


@pytest.mark.sampled(2)
def test_it_is_on_no_front_and_in_no_test(given):
    compared = significance.compared(given.rows)
    assert np.isnan(line_of(compared, given.method).p) and np.isnan(line_of(compared, given.method).p_holm)
    figure = experiment.pareto(given.rows, compared, experiment.decode_times(given.rows, given.rows))
    stairs = next(line for line in figure.axes[0].get_lines() if line.get_label() == "front")
    rest = given.rows[given.rows["method"] != given.method]
    alone = experiment.pareto(rest, significance.compared(rest), experiment.decode_times(rest, rest))
    same = next(line for line in alone.axes[0].get_lines() if line.get_label() == "front")
    np.testing.assert_array_equal(stairs.get_xydata(), same.get_xydata())
    others = significance.compared(rest).set_index("method")["p_holm"]
    np.testing.assert_array_equal(others, compared.set_index("method")["p_holm"].drop(given.method))


def test_it_is_drawn_hollow_with_a_cross(given):
    compared = significance.compared(given.rows)
    made = [
        run_figures.curve(given.rows),
        experiment.pareto(given.rows, compared, experiment.decode_times(given.rows, given.rows)),
    ]
    made.append(experiment.differences(given.rows, compared))
    for figure in made:
        [mark] = [line for axes in figure.axes for line in crosses(axes)]
        [hollow] = [
            line
            for axes in figure.axes
            for line in axes.get_lines()
            if line.get_label() == "_incomplete" and line is not mark
        ]
        assert to_rgba(hollow.get_markerfacecolor()) == to_rgba("white")
        said = [text.get_text() for text in figure.legends[0].get_texts()]
        assert any("some samples have no score" in text for text in said)


def test_nothing_is_tested_against_a_full_cache_that_failed():
    rows = rows_of({"full": [1.0] * 14 + [None], "h2o": [0.0] * 15}, [100] * 15)
    compared = significance.compared(rows)
    assert compared["p"].isna().all() and line_of(compared, "h2o").pairs == 14
    assert any("nothing is tested against it" in line for line in cautions.of(rows, compared))


def test_of_many_methods_the_order_is_that_of_one_size(monkeypatch):
    """A method that reaches large sizes alone is not ahead for that."""
    cells = {"full": [1.0] * 12, "pvc@0.5": [0.5] * 12, "pvc@0.1": [None] * 12}
    cells |= {"h2o@0.5": [1.0] * 12, "h2o@0.1": [0.0] * 12}
    rows = rows_of(cells, [100] * 12, why="below PvC's reach of 38.0%")
    monkeypatch.setattr(run_figures, "too_many", lambda rows: True)
    panels = run_figures.curve(rows).axes
    assert [[label.get_text() for label in axes.get_yticklabels()] for axes in panels[:1]] == [["h2o", "pvc"]]


# ------------------------------------------------------------------------------------------------- the same samples


def test_scores_and_sizes_are_told_of_the_samples_that_all_share():
    """StreamingLLM's 100.0 and 0.8 MB come of the long documents; there all methods have both."""
    rows = long_and_short()
    said = cautions.of(rows, perplexity.shown(rows))
    [shared] = [line for line in said if line.startswith("At 40%, on the 12 samples that every method answered")]
    mib = 0.4 * 2000 * 1000 / 2**20
    for method in ("h2o", "snapkv", "streaming_llm"):
        assert f"{method} 100.0 ({mib:.1f} MiB)" in shared
    assert "full 100.0 (1.9 MiB)" in shared
    frame, notes = markdown_latex.scores(rows, significance.compared(rows), published.beside(rows))
    cells = frame.set_index("method")
    assert cells.loc["streaming_llm", "n"] == "12 of 24" and cells.loc["streaming_llm", "MiB"] == "0.8 of 1.9"
    assert cells.loc["h2o", "MiB"] == "0.4" and shared in notes
    assert cells.loc["streaming_llm", "bytes, %"] == cells.loc["h2o", "bytes, %"] == "40.0"


def test_no_shared_sample_is_said():
    rows = rows_of({"full": [1.0] * 4, "h2o": [1.0, 1.0, None, None], "tova": [None, None, 1.0, 1.0]}, [100] * 4)
    said = cautions.of(rows, perplexity.shown(rows))
    assert "At 40% no sample was answered by every method: nothing can be compared there." in said


@pytest.mark.sampled(2)
def test_the_end_of_a_run_says_it(given, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(closing, "floors_of", lambda rows: {"random"})  # these rows have no folder
    summary = perplexity.shown(given.rows)
    parts = summaries.breakdown(given.rows) if given.rows["stratum"].nunique() > 1 else summary
    shown = {"rows": given.rows, "summary": summary, "parts": parts, "note": None, "figures": [], "tracked": None}
    run_table.show(SimpleNamespace(**shown, folder=tmp_path, measured=1, more=0))
    said = capsys.readouterr().out
    assert f"{given.method} at 40% is incomplete: {given.answered} of {given.total} samples have a score" in said
    assert f"{given.answered} of {given.total}" in next(line for line in said.splitlines() if given.method in line)


def test_a_part_that_failed_is_no_whole_mean():
    table, notes = markdown_latex.by_set(a_set_failed())
    cells = table.set_index("method")
    assert cells.loc["tova", "mean"] == "100.0 (16 of 24)" and cells.loc["tova", "cwe"] == "-"
    assert cells.loc["h2o", "mean"] == "66.7" and any("tova at 40% is incomplete" in note for note in notes)


def test_positions_are_compared_on_documents_all_cells_have():
    """The panel's lines are means over the same documents: without that StreamingLLM's would be of the easy ones."""
    rows = rows_of(
        {"full": [-1.0] * 2 + [-5.0] * 2, "h2o": [-1.0] * 2 + [-5.0] * 2, "tova": [-1.0] * 2 + [None] * 2}, [300] * 4
    )
    rows["token_nll"] = rows["score"].map(lambda score: None if score is None or np.isnan(score) else [-score] * 64)
    rows["budget_entries"] = None
    [axes] = run_figures.likelihood_by_position(rows).axes
    assert axes.get_title() == "asked 40%, 2 of 4 documents"
    for line in axes.get_lines():
        np.testing.assert_allclose(line.get_ydata(), 1.0)


# -------------------------------------------------------------------------------------------------- other readers


def test_a_comparison_with_lost_pairs_has_no_test(capsys):
    line = significance.versus(three_of_thirty(), "random", "h2o", "0.4")
    assert (line["samples"], line["lost"]) == (3, 27) and np.isnan(line["p"])
    table = pd.DataFrame([{"run": "a[/b]", **line}]).assign(p_holm=np.nan)
    compare.show(table)
    said = capsys.readouterr().out
    assert "no test" in said and "3 of 30" in said and "a[/b]" in said


def test_the_mirror_keeps_it_off_the_curve(given):
    points = wandb_mirror.points(summaries.summarize(given.rows), "needle")
    names = {key for point in points for key in point}
    assert f"needle/{given.method}/incomplete" in names and f"needle/{given.method}" not in names
    assert "needle/h2o" in names


def test_unlike_sizes_are_refused_by_either_measure(tmp_path):
    line = {"method": "a", "other": "b", "budget": "0.1", "kept": 0.5, "other_kept": 0.5}
    with pytest.raises(UserError, match=r"10\.0% and 20\.0% of the entries"):
        compare_methods.refuse_other_sizes(tmp_path, line | {"entries": 0.1, "other_entries": 0.2})
    with pytest.raises(UserError, match=r"50\.0% and 70\.0% of the bytes"):
        compare_methods.refuse_other_sizes(tmp_path, line | {"other_kept": 0.7, "entries": 0.1, "other_entries": 0.1})
    compare_methods.refuse_other_sizes(tmp_path, line | {"entries": 0.1, "other_entries": 0.1})


# ---------------------------------------------------------------------------------------------------------- leaking


def test_what_leaks_is_known_from_the_rows_under_any_name():
    cells = {"full": [1.0] * 12, "h2o": [0.5] * 12, "mine": [1.0] * 12}
    rows = rows_of(cells, [100] * 12)
    assert ranking.leaking(rows) == set()
    rows.loc[rows["method"] == "mine", "reads"] = "answer"
    assert ranking.leaking(rows) == {"mine"}
    found = answer.at_size(rows, significance.compared(rows), 0.4, set())
    assert [one.method for one in found.leading] == ["h2o"]
    assert [line["method"] for line in found.aside[answer.LEAKS]] == ["mine"]
    figure = experiment.pareto(rows, significance.compared(rows), experiment.decode_times(rows, rows))
    stairs = next(line for line in figure.axes[0].get_lines() if line.get_label() == "front")
    assert sorted(stairs.get_ydata()) == [0.5, 1.0]  # h2o and the full cache
    named = rows.assign(method=rows["method"].replace({"h2o": "oracle_answer"}))
    assert ranking.leaking(named) == {"mine"}  # a name alone is nothing: these rows say what their methods read
    assert ranking.leaking(named.drop(columns="reads")) == set()  # of such rows the run's configuration tells


def test_rows_say_what_their_method_reads():
    from pvcbench.evaluation.cells import Point
    from pvcbench.evaluation.row import label
    from pvcbench.policy import Method

    class Reader(Method):
        reads = "answer"

    assert label(Point("any name", Reader(), "0.1", 0.1))["reads"] == "answer"
    assert label(Point("plain", Method(), "0.1", 0.1))["reads"] == "prompt"
    assert label(Point(None, None, None, None))["reads"] is None
