"""Where the full cache itself answers next to nothing, tables, figures, the report and the end of a run say so."""

import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import pvcbench
from cells import rows_of
from pvcbench.cli import run_table
from pvcbench.plots import cautions, experiment, published, run_figures
from pvcbench.plots.style import subject
from pvcbench.report import leaderboard, markdown_latex, scores
from pvcbench.stats import floor, perplexity, significance, summaries

ONE = "The full cache itself answers only 1 of 30: what a method loses can be seen on those alone"


@pytest.fixture
def rows():
    """The full cache is right on one of thirty, H2O on none, random on the same one."""
    return rows_of({"full": [1.0] + [0.0] * 29, "h2o": [0.0] * 30, "random": [1.0] + [0.0] * 29}, [100] * 30)


def shown(rows, tmp_path, capsys):
    summary = perplexity.shown(rows)
    known = {"rows": rows, "summary": summary, "parts": summary, "note": None, "figures": [], "tracked": None}
    run_table.show(SimpleNamespace(**known, folder=tmp_path, measured=1, more=0))
    return capsys.readouterr().out


@pytest.mark.parametrize("hits, total, at_floor", [(0, 4, True), (1, 30, True), (14, 30, True), (15, 30, False)])
def test_fewer_than_half_is_the_floor(hits, total, at_floor):
    made = rows_of({"full": [1.0] * hits + [0.0] * (total - hits), "h2o": [0.0] * total}, [100] * total)
    said = floor.sentence(made)
    assert (said is not None) == at_floor
    assert not at_floor or (f"only {hits} of {total}" if hits else f"none of {total}") in said


def test_shares_of_words_are_answers_and_likelihoods_have_no_floor():
    """ROUGE of a good summary is far below one half; minus the NLL lies below zero; tokens a second are no scores."""
    assert floor.sentence(rows_of({"full": [0.2] * 9, "h2o": [0.2] * 9}, [100] * 9)) is None
    assert floor.sentence(rows_of({"full": [0.05] * 9, "h2o": [0.2] * 9}, [100] * 9)) is not None
    assert floor.sentence(rows_of({"full": [-3.0] * 9, "h2o": [-4.0] * 9}, [100] * 9)) is None
    speeds = rows_of({"full": [0.05] * 9, "h2o": [0.04] * 9}, [100] * 9).assign(repeats=[{}] * 18)
    assert floor.sentence(speeds) is None


def test_no_difference_is_not_plus_zero(rows):
    compared = significance.compared(rows)
    frame, notes = markdown_latex.scores(rows, compared, published.beside(rows))
    cells = frame.set_index("method")
    assert cells.loc["random", "minus full"] == cells.loc["h2o", "minus full"] == "floor"
    assert any(note.startswith(ONE) for note in notes)
    board = {line["method"]: line for line in leaderboard.lines_of(scores.run_of(rows), compared, pd.DataFrame(), {})}
    assert board["random"]["difference"] == "floor" and board["random"]["difference_interval"] == ""
    assert any(note.startswith(ONE) for note in scores.run_of(rows)["cautions"])


def test_a_difference_told_from_zero_stays():
    """14 of 30 is a floor, and a method that loses them all is still seen to lose them."""
    made = rows_of({"full": [1.0] * 14 + [0.0] * 16, "h2o": [0.0] * 30}, [100] * 30)
    frame, _ = markdown_latex.scores(made, significance.compared(made), published.beside(made))
    assert frame.set_index("method").loc["h2o", "minus full"].startswith("-46.7 [")


def test_every_figure_says_it(rows):
    compared = significance.compared(rows)
    assert subject(rows).split("\n")[-1] == ONE
    for made in (
        run_figures.curve(rows),
        experiment.pareto(rows, compared, experiment.decode_times(rows, rows)),
        experiment.differences(rows, compared),
    ):
        assert made.legends[0].get_title().get_text().endswith(ONE)
    good = rows_of({"full": [1.0] * 30, "h2o": [0.0] * 30}, [100] * 30)
    assert "full cache" not in subject(good)


def test_the_end_of_a_run_is_loud(rows, tmp_path, capsys):
    said = shown(rows, tmp_path, capsys)
    assert ONE in said.split("┏")[0].replace("\n", " ")  # above the table
    last = said.strip().splitlines()[-1]
    assert last.startswith(f"WARNING: {ONE}") and "pvcbench report" in last
    assert "+0.0" not in said and "floor" in said


OUTPUTS = {
    "<think>\nLet me see, the": (0, 1),
    "<think>done</think>": (1, 0),
    "<think>done</think>river": (0, 0),
    "<think>one</think> more <think>two": (0, 1),
    "[THINK]hm": (0, 1),
    " \n": (1, 0),
    "river": (0, 0),
}


@pytest.mark.parametrize("output, counts", OUTPUTS.items(), ids=range(len(OUTPUTS)))
def test_empty_answers_and_unfinished_thinking_are_told_apart(rows, output, counts):
    rows["output"] = "river"
    rows.loc[(rows["method"] == "full") & (rows["sample"] == "3"), "output"] = output
    rows.loc[rows["method"] == "h2o", "output"] = "<think>"  # the method's answers are its own affair
    assert floor.silence(rows) == (*counts, 30)


def test_what_to_do_is_said(rows, tmp_path, capsys):
    rows["output"] = np.where(rows["sample"].astype(int) < 28, "<think> I", "")
    said = shown(rows, tmp_path, capsys)
    assert (
        "WARNING: 28 of 30 answers of the full cache stop inside the model's thinking: set model.thinking=false" in said
    )
    assert "WARNING: 2 of 30 answers of the full cache are empty" in said


def test_sets_at_the_floor_are_named():
    sets = ["niah"] * 10 + ["vt"] * 10
    made = rows_of({"full": [1.0] * 10 + [0.0] * 9 + [1.0], "h2o": [0.0] * 20}, [100] * 20, stratum=sets)
    said = cautions.of(made, summaries.summarize(made))
    assert said == ["Data sets of which the full cache itself answers fewer than half say little: vt (1 of 10)."]
    titles = [axes.get_title() for axes in run_figures.curves_by_part(made).axes]
    assert titles == ["niah", "vt (full answers 1 of 10)"]
    assert said[0] in markdown_latex.by_set(made)[1]


def test_from_python_it_is_a_warning(tmp_path):
    """A model with random weights finds no needle."""
    settings = {"results": str(tmp_path), "limit": 2, "threads": 1, "wandb__mode": "disabled", "task__lengths": [300]}
    with pytest.warns(UserWarning, match="The full cache itself answers none of 2"):
        pvcbench.evaluate("random", "needle", ["h2o"], budgets=[0.5], **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pvcbench.evaluate(
            "random",
            "perplexity",
            ["h2o"],
            task__prefix=60,
            task__continuation=9,
            budgets=[0.5],
            **{name: value for name, value in settings.items() if name != "task__lengths"},
        )
