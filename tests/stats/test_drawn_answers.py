"""avg@n and pass@k against their definitions by enumeration, and what missing answers do to them."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from pvcbench.stats import drawn_answers
from pvcbench.stats.intervals import mean_interval


@pytest.mark.parametrize("answers", [1, 2, 5, 7])
def test_pass_at_k_is_the_share_of_all_choices_with_a_right_answer(answers):
    for right in range(answers + 1):
        marks = [True] * right + [False] * (answers - right)
        for k in range(1, answers + 1):
            chosen = [any(some) for some in combinations(marks, k)]
            assert drawn_answers.pass_at(answers, right, k) == pytest.approx(np.mean(chosen), abs=1e-12)


@pytest.mark.parametrize(("answers", "right", "k"), [(3, 1, 4), (3, 4, 1), (3, 1, 0), (3, -1, 1)])
def test_what_cannot_be_is_refused(answers, right, k):
    with pytest.raises(ValueError, match="pass@"):
        drawn_answers.pass_at(answers, right, k)


def rows(scores, method="h2o"):
    """Rows of problems with some answers each; None is an answer that failed."""
    made = []
    for number, of_problem in enumerate(scores):
        for draw, score in enumerate(of_problem):
            made.append({
                "sample": f"{number}#{draw}", "problem": str(number), "draw": draw, "cluster": str(number),
                "stratum": "", "method": method, "budget": "0.5", "reference": method == "full", "score": score,
                "error": None if score is not None else "RuntimeError: no", "kv_bytes": 50, "kept_fraction": 0.5,
                "prompt_sha256": str(number), "answer_tokens": 10 + draw, "truncated": draw == 1, "looping": False,
            })  # fmt: skip
    return pd.DataFrame(made)


def test_means_are_over_answers_then_problems_and_intervals_over_problems():
    scores = [[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 1]]
    [line] = drawn_answers.table(rows(scores)).to_dict("records")
    means = pd.Series([np.mean(one) for one in scores])
    assert line["avg@4"] == pytest.approx(means.mean()) and line["problems"] == 4 and line["answers"] == 4
    two = [np.mean([any(some) for some in combinations(one, 2)]) for one in scores]
    assert line["pass@2"] == pytest.approx(np.mean(two)) and line["pass@4"] == pytest.approx(0.75)
    assert line["pass@1"] == pytest.approx(line["avg@4"]) and "pass@8" not in line
    own = mean_interval(means, pd.Series(list("0123")), pd.Series([""] * 4), True)
    assert (line["avg@4_low"], line["avg@4_high"]) == pytest.approx(own)
    assert line["tokens"] == 11.5 and line["truncated"] == 0.25 and line["lost"] == 0


def test_an_answer_that_failed_never_improves_anything():
    whole = drawn_answers.table(rows([[1, 0], [0, 1], [1, 0]])).iloc[0]
    lost = drawn_answers.table(rows([[1, 0], [0, 1], [1, None]])).iloc[0]
    assert lost["lost"] == 1 and whole["lost"] == 0
    assert all(lost[name] == whole[name] for name in ("avg@2", "pass@1", "pass@2"))
    worse = drawn_answers.table(rows([[1, 0], [0, 1], [None, 0]])).iloc[0]
    assert worse["avg@2"] < whole["avg@2"] and worse["pass@2"] == pytest.approx(2 / 3)


def test_greedy_answers_get_a_table_only_where_they_are_held_or_stopped():
    made = rows([[1], [0]]).drop(columns=["draw", "problem"])
    usual = {"decode": "grow"}
    for more, wanted in (
        ({}, False),
        ({"decode": "hold"}, True),
        ({"stop_repeats": {}}, True),
        ({"sampling": {}}, True),
    ):
        protocol = [usual | more] * len(made)
        assert drawn_answers.worth_a_table(made.assign(protocol=protocol)) is wanted
        assert not drawn_answers.worth_a_table(made.assign(protocol=protocol).drop(columns="answer_tokens"))
    [line] = drawn_answers.table(made).to_dict("records")
    assert line["avg@1"] == 0.5 and not any(name.startswith("pass@") for name in line)
