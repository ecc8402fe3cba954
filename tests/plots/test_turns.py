"""The picture of scores by turn, from made-up rows."""

import copy

import pytest

from pvcbench.plots.run_figures import pictures
from pvcbench.plots.style import subject
from pvcbench.plots.turns import curve_by_turn
from pvcbench.stats import summaries
from rows import needle_rows, table

MADE = needle_rows(repeats=12, methods=("full", "random", "h2o"), budgets=(0.25, 0.55))


def conversation(made):
    """Rows of three turns: later ones are answered by the full cache alone."""
    rows = copy.deepcopy(made)
    turns = {name: number % 3 + 1 for number, name in enumerate(dict.fromkeys(row["sample"] for row in rows))}
    for row in rows:
        turn = turns[row["sample"]]
        row["sample_info"] = {**row["sample_info"], "turn": turn}
        row["protocol"] = {**row["protocol"], "history": "golden", "recompress": False}
        row["score"] = 1.0 if row["reference"] else float(turn == 1)
        row["metrics"] = {"accuracy": row["score"]}
    return table(rows)


def test_panels_lines_and_labels():
    rows = conversation(MADE)
    figure = curve_by_turn(rows)
    assert [axes.get_title() for axes in figure.axes] == ["asked 25%", "asked 55%"]
    for axes in figure.axes:
        assert axes.get_xticks().tolist() == [1, 2, 3]
        lines = {line.get_label(): line.get_ydata().tolist() for line in axes.get_lines()}
        assert lines == {"full": [1, 1, 1], "h2o": [1, 0, 0], "random": [1, 0, 0]}
    assert (
        figure.get_supxlabel().startswith("turn of the conversation")
        and "mean; 1 is the best" in figure.get_supylabel()
    )
    assert "later ones follow uncut after golden answers" in subject(rows)


def test_the_summary_has_a_line_for_every_turn():
    parts = summaries.breakdown(conversation(MADE))
    turns = parts[parts["kind"] == "turn"]
    assert turns["part"].tolist() == sorted(turns["part"]) and set(turns["part"]) == {"1", "2", "3"}
    assert summaries.divided(conversation(MADE))


def test_an_incomplete_turn_is_hollow_and_rows_without_turns_have_no_such_picture():
    rows = conversation(MADE)
    place = rows.index[(rows["method"] == "h2o") & (rows["budget"] == "0.25")][0]
    rows.loc[place, ["score", "error"]] = [None, "failed"]
    figure = curve_by_turn(rows)
    assert any(line.get_label() == "_incomplete" for line in figure.axes[0].get_lines())
    assert curve_by_turn(table(copy.deepcopy(MADE))) is None


def test_it_is_among_the_pictures_of_a_run():
    assert dict(pictures(conversation(MADE)))["curve_by_turn"] is not None


@pytest.mark.parametrize(
    "protocol, told",
    [
        ({"history": "model", "recompress": False}, "uncut after the model's own answers"),
        ({"history": "golden", "recompress": True}, "every turn is cut anew"),
    ],
)
def test_the_title_says_what_stands_before_a_turn(protocol, told):
    rows = conversation(MADE)
    rows["protocol"] = rows["protocol"].map(lambda known: known | protocol)
    assert told in subject(rows)
