"""Scores so far: means of a run that goes on, and the table that a terminal shows of them."""

import io

import pytest
from rich.console import Console

from pvcbench.evaluation.progress import scores_so_far
from pvcbench.stats import summaries
from pvcbench.stats.running import RunningMeans
from rows import needle_rows, table


def line(method, budget, score, stratum="", metrics=None):
    return {"method": method, "budget": budget, "score": score, "stratum": stratum, "metrics": metrics or {"f1": score}}


def test_after_the_last_row_they_are_the_summary():
    rows = needle_rows(repeats=2, methods=("full", "pvc", "h2o"))
    running = RunningMeans()
    for row in rows:
        running.add([row])
    summary = summaries.summarize(table(rows))
    scored = summary[summary["score"].notna()]
    assert running.means() == pytest.approx(
        {(cell.method, cell.budget): cell.score for cell in scored.itertuples()}, abs=1e-12
    )


def test_data_sets_count_alike_whatever_their_samples():
    running = RunningMeans()
    running.add([line("h2o", "0.5", 1.0, "a")] * 3 + [line("h2o", "0.5", 0.0, "b")])
    assert running.means() == {("h2o", "0.5"): 0.5}


def test_rows_without_a_score_or_a_method_say_nothing():
    running = RunningMeans()
    running.add([line("pvc", "0.1", None), line(None, None, 1.0)])
    assert running.means() == {} and running.sums == {}


@pytest.mark.parametrize(("score", "told"), [(0.5, "50.0"), (-1.25, "-1.2500"), (40.0, "40.0000")])
def test_shares_are_told_in_per_cent_and_other_scores_as_they_are(score, told):
    running = RunningMeans()
    running.add([line("h2o", "0.5", score)])
    shown = text([("full", "1.0"), ("h2o", "0.5"), ("h2o", "0.25")], running)
    assert told in shown and ("per cent" in shown) == (0 <= score <= 1)


def text(cells, running):
    console = Console(file=io.StringIO(), width=100, color_system=None)
    console.print(scores_so_far(cells, running, 1))
    return console.file.getvalue()


def test_a_cell_without_a_score_is_a_dot_and_one_that_was_not_asked_for_is_empty():
    running = RunningMeans()
    running.add([line("h2o", "0.5", 1.0)])
    shown = text([("full", "1.0"), ("h2o", "0.25"), ("h2o", "0.5")], running)
    (own,) = [row for row in shown.splitlines() if "h2o" in row]
    assert own.split("│")[1:-1] == [" h2o    ", "     ", "    . ", " 100.0 "]
    assert "f1, per cent, after 1 sample: not a result yet" in " ".join(shown.split())
