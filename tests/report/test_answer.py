"""The answer on the first screen: who leads at each size, what is tied, and what is never ranked."""

import numpy as np
import pandas as pd
import pytest

from cells import rows_of
from pvcbench.report import answer, answer_text, leaderboard, relative_times, scores
from pvcbench.stats import significance
from rows import perplexity_rows, table

TOKENS = [1000] * 30


def ones(count, of=30):
    """A score of one for so many samples, the first, and zero for the others."""
    return [1.0] * count + [0.0] * (of - count)


@pytest.fixture(scope="module")
def rows():
    """mine and near tie (27 and 25 of 30), far is far behind; beside them a leak, the floor and a failure."""
    cells = {"full": ones(30), "mine": ones(27), "near": ones(25), "far": ones(4), "random": ones(28)}
    rows = rows_of(cells | {"leak": ones(30), "lost": [1.0] * 29 + [None]}, TOKENS)
    rows.loc[rows["method"] == "leak", "reads"] = "answer"
    return rows


def verdict(rows, target=0.4, floors=("random",)):
    return answer.at_size(rows, significance.compared(rows), target, set(floors))


def names(found):
    return [one.method for one in found]


def said(rows, target=0.4):
    """Head and words of a size, as the page has them."""
    compared = significance.compared(rows)
    full, run = answer.full_cache(compared), scores.run_of(rows, compared)
    ats = answer.at_sizes(rows, compared, {"random"})
    views = answer_text.view(ats, full, run, relative_times.of(rows), {})
    found = next(one for one, at in zip(views, ats, strict=True) if at.target == target)
    return f"{found['head']} {found['words']}", found


# ---------------------------------------------------------------------------------------------- who leads


def test_the_leading_group_is_what_tests_do_not_tell_from_the_best(rows):
    found = verdict(rows)
    assert names(found.leading) == ["mine", "near"] and names(found.behind) == ["far"]
    near, far = found.leading[1], found.behind[0]
    raw = [significance.versus(rows, name, "mine", "0.4") for name in ("near", "far")]
    assert [near.p, far.p] == pytest.approx(significance.holm([one["p"] for one in raw]))
    assert near.difference == pytest.approx(-2 / 30) and (near.low, near.high) == (raw[0]["low"], raw[0]["high"])
    assert near.p > 0.05 > far.p and found.tested == 2


def test_what_is_never_ranked_stands_aside(rows):
    found = verdict(rows)
    aside = {why: [line["method"] for line in lines] for why, lines in found.aside.items()}
    assert aside == {answer.LEAKS: ["leak"], answer.FLOOR: ["random"], answer.INCOMPLETE: ["lost"]}
    assert names(verdict(rows, floors=()).leading)[0] == "random"  # what the floor is, the caller says
    only = rows[rows["method"].isin(["full", "random", "leak"])]
    assert not verdict(only).leading and verdict(only).nearest is None
    assert said(only)[0] == "Nothing to rank: what was measured here is no candidate."


def test_holm_corrects_over_all_comparisons_at_the_size():
    """One method loses 6 samples and wins none: p = 0.014 alone, and no longer below 0.05 among eight comparisons."""
    two = rows_of({"full": ones(30), "best": ones(30), "close": ones(24)}, TOKENS)
    assert names(verdict(two).behind) == ["close"]
    others = {f"other{number}": ones(24) for number in range(7)}
    many = rows_of({"full": ones(30), "best": ones(30), "close": ones(24)} | others, TOKENS)
    assert "close" in names(verdict(many).leading) and not verdict(many).behind


def test_of_perplexities_the_lowest_leads():
    rows = table(perplexity_rows())
    found = verdict(rows, 0.25)
    assert names(found.leading) == ["h2o"]
    more = rows[rows["method"] == "h2o"].assign(method="worse")
    lost = np.random.default_rng(0).normal(0.5, 0.05, len(more))  # nats a token, by document
    more["token_nll"] = [(np.asarray(nll) + one).tolist() for nll, one in zip(more["token_nll"], lost, strict=True)]
    more["score"] = more["score"].astype(float) - lost
    both = pd.concat([rows, more], ignore_index=True)
    found = verdict(both, 0.25)
    assert names(found.leading) == ["h2o"] and names(found.behind) == ["worse"]
    text, view = said(both, 0.25)
    assert text.startswith("h2o leads with") and "tests tell it apart from worse" in text and "full cache:" in text
    assert view["lines"][0]["difference"] == ""


def test_a_single_method_is_compared_with_nothing():
    rows = rows_of({"full": ones(30), "mine": ones(20)}, TOKENS)
    assert (
        said(rows)[0]
        == "mine is the only method measured here, with 66.7 (full cache: 100.0): nothing to compare it with."
    )


@pytest.mark.parametrize("cells", [{"full": ones(30)}, {"full": ones(30), "mine": [None] * 30}, {"mine": ones(30)}])
def test_little_is_enough_for_a_page(cells):
    """The full cache alone, a method without a score, no full cache: a verdict each, and no error."""
    text, view = said(rows_of(cells, TOKENS))
    head = (
        "mine is the only method measured here" if cells.get("mine", [None])[0] else "Not measured: no cell of a method"
    )
    assert text.startswith(head) and view["behind"] == []


def test_too_few_samples_are_no_test():
    rows = rows_of({"full": ones(4, 4), "mine": ones(4, 4), "far": ones(0, 4)}, [1000] * 4)
    found = verdict(rows)
    assert found.tested == 0 and names(found.leading) == ["mine", "far"]
    text, view = said(rows)
    assert text.startswith("No test is possible: too few samples. The best of 2 scores is mine's, 100.0")
    assert not view["tested"] and [line["p"] for line in view["lines"]] == ["", "no test"]


def test_all_may_tie():
    rows = rows_of({"full": ones(30), "one": ones(20), "two": ones(19), "three": ones(18)}, TOKENS)
    assert (
        said(rows)[0]
        == "All 3 methods tie: 30 samples tell none apart from the best, one with 66.7 (full cache: 100.0)."
    )


# ---------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("share, stands", [(0.091, True), (0.109, True), (0.089, False), (0.12, False)])
def test_another_size_is_not_this_size(share, stands):
    rows = rows_of({"full": ones(30), "mine": ones(20)}, TOKENS, budget="0.1", kept=share)
    found = verdict(rows, 0.1)
    assert bool(found.leading) == stands
    if not stands:
        assert found.nearest["method"] == "mine"
        assert said(rows, 0.1)[0] == f"Not measured: the nearest is mine at {share:.1%} (asked 10%)."


def test_the_nearest_of_a_methods_cells_stands():
    rows = rows_of({"full": ones(30), "mine@0.37": ones(20), "mine@0.41": ones(10), "mine@0.25": ones(30)}, TOKENS)
    [only] = verdict(rows).leading
    assert only.line["budget"] == "0.41"


def test_sizes_are_shares_of_the_bytes():
    """Half of the bytes never go: the 40% that were asked for are 70% of the cache."""
    rows = rows_of({"full": ones(30), "mine": ones(20)}, TOKENS)
    full = rows["reference"].astype(bool)
    rows["kv_bytes"] = np.where(full, 2_000_000, 1_400_000)
    found = verdict(rows)
    assert found.measure == "kept_bytes" and not found.leading and found.nearest["kept_bytes"] == pytest.approx(0.7)


def test_a_cell_out_of_reach_is_named_at_its_size():
    cells = {"full": ones(30), "mine": ones(20), "pvc": [None] * 30}
    rows = rows_of(cells, TOKENS, why="below PvC's reach of 45.0%")
    _, view = said(rows)
    cell = {"method": "pvc", "budget": "0.4", "score": "out of reach (below 45.0%)", "runs": []}
    assert view["aside"] == [{"why": answer.NO_SCORE, "cells": [cell]}]


# ---------------------------------------------------------------------------------------------- costs


def test_times_are_beside_the_full_cache_of_the_same_run():
    rows = rows_of({"full": ones(2, 2), "mine": ones(2, 2), "far": ones(2, 2)}, [1000] * 2)
    rows["prefill_s"] = rows["method"].map({"full": 2.0, "mine": 3.0, "far": 1.0})
    rows.loc[rows["method"] == "far", "run"] = "another"
    found = relative_times.of(rows)
    assert found.loc[("mine", "0.4"), "prefill"] == 1.5 and np.isnan(found.loc[("mine", "0.4"), "decode"])
    assert ("far", "0.4") not in found.index


def test_decoding_is_compared_over_equal_answers_alone():
    rows = rows_of({"full": ones(2, 2), "mine": ones(2, 2)}, [1000] * 2)
    mine = rows["method"] == "mine"
    rows["decode_s"] = [1.0, 1.0, 2.0, 9.0]
    rows.loc[mine, "output"] = ["x", "a longer answer"]
    assert relative_times.of(rows).loc[("mine", "0.4"), "decode"] == 2.0
    rows["decode_s"] = None
    compared = significance.compared(rows)
    lines = leaderboard.lines_of(scores.run_of(rows, compared), compared, relative_times.of(rows), {})
    assert [(line["decode"], line["sort"]["decode"]) for line in lines] == [("1.00", 1.0), ("not measured alone", None)]


# ---------------------------------------------------------------------------------------------- the leaderboard


def test_every_line_can_be_sorted_by_every_column(rows):
    compared = significance.compared(rows)
    run = scores.run_of(rows, compared)
    lines = {line["method"]: line for line in leaderboard.lines_of(run, compared, relative_times.of(rows), {})}
    assert all(line["sort"].keys() == leaderboard.COLUMNS.keys() for line in lines.values())
    assert lines["mine"]["sort"]["score"] == pytest.approx(90) and lines["mine"]["score"] == "90.0"
    assert lines["full"]["sort"]["asked"] == 0 and lines["full"]["asked"] == "all"
    assert lines["lost"]["sort"]["score"] is None and lines["lost"]["n"] == "29 of 30: incomplete, not ranked"
    p = compared.set_index("method")["p_holm"]
    assert lines["far"]["differs"] and lines["far"]["sort"]["p"] == pytest.approx(p["far"], abs=1e-6)
