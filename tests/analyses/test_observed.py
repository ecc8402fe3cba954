"""What all analyses share: their samples, their place in the runner, and the statistics of their reports."""

import importlib

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from pvcbench import analyses
from pvcbench.analyses import common
from pvcbench.analyses.context_redundancy.task import ContextRedundancy
from pvcbench.analyses.observed_task import Observed
from pvcbench.cli import run_table
from pvcbench.config import building, compose
from pvcbench.errors import UserError
from pvcbench.runs import runner
from pvcbench.stats import intervals
from pvcbench.tasks.prompts import Prompter
from rows import table

TINY = ["model=random", "threads=1", "wandb.mode=disabled", "task.tokens=[128]", "task.following=16"]


@pytest.fixture(scope="module")
def prompter():
    loaded = building.build(compose.composed(["model=random"]).model, "the model", device="cpu", dtype=None)
    return Prompter(loaded.tokenizer, loaded.chat, loaded.longest)


def made(prompter, **settings):
    task = Observed(**{"tokens": [256, 400], "documents": 3, "needles": 7, "following": 20, **settings})
    task.prepare(prompter)
    return task


def test_samples_are_texts_with_what_follows_them(prompter):
    task = made(prompter)
    assert task.size(0) == 2 * (3 + 7)
    for index in range(task.size(0)):
        sample = task.sample(0, index)
        coded, length = task.encode(sample), sample.info["length"]
        text = prompter.decode(list(coded.ids))
        if sample.info["text"] == "document":
            assert (coded.context_tokens, len(coded.ids)) == (length, length + 20) and not coded.spans
            continue
        assert 0.99 * length <= coded.context_tokens <= length
        first, last = sample.spans["needle"]
        answer = prompter.decode(list(coded.ids[coded.context_tokens :]))
        assert answer == sample.context[first:last]  # the right answer is the hidden sentence
        assert text.count(sample.answers[0]) == 2  # in the prompt and in the answer
        for span, wanted in (("needle", answer), ("answer", sample.answers[0])):
            assert prompter.decode(list(coded.ids[slice(*coded.spans[span])])).strip() == wanted


def test_a_limit_sees_every_kind_and_more_samples_extend_a_run(prompter):
    few, many = made(prompter), made(prompter, documents=6, needles=9)
    first = [few.sample(1, index).info for index in range(4)]
    assert {(info["text"], info["length"]) for info in first} == {
        (text, length) for text in ("document", "needle") for length in (256, 400)
    }
    ids = [[task.sample(1, index).id for index in range(task.size(1))] for task in (few, many)]
    assert set(ids[0]) < set(ids[1]) and len(set(ids[1])) == len(ids[1])
    assert few.settings() == many.settings() and few.data_checksum() == many.data_checksum()
    assert few.sample(1, 3) == made(prompter).sample(1, 3) != few.sample(2, 3)


def test_only_needles_or_only_documents(prompter):
    assert {made(prompter, documents=0).sample(0, i).info["text"] for i in range(14)} == {"needle"}
    assert {made(prompter, needles=0).sample(0, i).info["text"] for i in range(6)} == {"document"}


@pytest.mark.parametrize(
    "settings", [{"documents": 0, "needles": 0}, {"tokens": [32]}, {"tokens": []}, {"following": 1}, {"documents": -1}]
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(UserError, match=r"task\.(tokens|following|documents)"):
        Observed(**settings)


def small(tmp_path, *more):
    keys = ["task=context_redundancy", "task.shares=[0.2]", "task.above=[0.2]", "task.documents=2", "task.needles=1"]
    return runner.run(compose.composed([*TINY, *keys, f"results={tmp_path}", *more]), figures=False)


def test_what_fails_is_a_row_and_sinks_no_other(tmp_path, monkeypatch):
    observer = importlib.import_module(ContextRedundancy.observer)
    real, calls = observer.observe, []

    def failing(*args):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of\nmemory")
        return real(*args)

    monkeypatch.setattr(observer, "observe", failing)
    first = small(tmp_path)
    errors = first.rows["error"]
    assert (
        len(first.rows) == 3 and errors.notna().sum() == 1 and errors.dropna().iloc[0] == "RuntimeError: out of memory"
    )
    assert small(tmp_path).measured == 0
    again = small(tmp_path, "retry_failed=true")
    assert again.measured == 1 and again.rows["error"].isna().all() and len(again.rows) == 3


def test_methods_are_no_part_of_a_run_that_does_not_use_them(tmp_path):
    first = small(tmp_path, "method=h2o", "budgets=[0.5]")
    assert small(tmp_path, "method=[pvc,random]", "budgets=[0.1]").folder == first.folder
    assert first.rows["method"].isna().all() and first.rows["budget"].isna().all()


def test_the_console_shows_a_table_per_group_and_what_was_not_used(tmp_path, capsys):
    run_table.show(small(tmp_path))
    shown = capsys.readouterr().out
    for text in (
        "documents, 128 tokens",
        "needle prompts, 128 tokens",
        "method and budgets are not used",
        "rows.jsonl",
    ):
        assert shown.count(text) == 1


def test_protocols_of_a_question_are_refused(tmp_path):
    with pytest.raises(UserError, match="query_aware"):
        small(tmp_path, "query_aware=false")
    with pytest.raises(UserError, match="refeed_last"):
        small(tmp_path, "refeed_last=true")


def test_prompts_longer_than_the_model_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"lower task\.tokens"):
        small(tmp_path, "model.shape=tiny", "task.tokens=[100000]", "task.documents=0")


# ------------------------------------------------------------------------------------------------------- statistics


def test_every_task_has_an_observer_and_a_reporter():
    tasks = [task for task in compose.options("task") if task in analyses.REPORTED]
    assert len(tasks) == 5
    for name in tasks:
        task = building.build(compose.composed([f"task={name}"]).task, name)
        assert task.kind == "measure" or callable(importlib.import_module(task.observer).observe)
        report = analyses.reporter(pd.DataFrame({"task": [task.name]}))
        assert callable(report.tables) and callable(report.figures) and "95% intervals" in report.intervals
    assert analyses.reporter(pd.DataFrame({"task": ["needle"]})) is None


def test_intervals_are_those_of_scores():
    """Entry by entry they equal the intervals of scores, which are held to brute force elsewhere."""
    rng = np.random.default_rng(3)
    values, clusters = rng.lognormal(size=(24, 2, 3)), pd.Series([f"c{i % 12}" for i in range(24)])
    mean, low, high = common.intervals(values, clusters)
    assert mean.shape == (2, 3)
    for place in np.ndindex(2, 3):
        own = values[(slice(None), *place)]
        assert mean[place] == pytest.approx(own.mean())
        assert (low[place], high[place]) == pytest.approx(intervals.clustered(own, clusters)[1:3], rel=1e-12)


def test_intervals_leave_out_what_is_unknown():
    values = np.stack([np.arange(12.0), np.r_[np.nan, np.nan, np.ones(10)], np.r_[np.full(3, np.nan), np.ones(9)]], 1)
    mean, low, high = common.intervals(values, pd.Series(range(12)))
    assert mean.tolist() == [5.5, 1.0, 1.0]
    assert low[0] < 5.5 < high[0] and (low[1], high[1]) == (1.0, 1.0)  # ten clusters know it
    assert np.isnan([low[2], high[2]]).all()  # nine: no interval
    values[2, 1] = 2.0
    mean, low, high = common.intervals(values, pd.Series(range(12)))
    assert mean[1] == 1.1 and low[1] < 1.1 < high[1]  # ten clusters know it
    assert np.isnan(common.intervals(np.full((12, 1), np.nan), pd.Series(range(12)))[0]).all()


def test_rank_correlation_is_spearmans_where_there_is_one():
    first, second = np.array([1.0, 2, 3, np.nan, 5]), np.array([2.0, 1, 4, 9, 7])
    assert common.rank_correlation(first, second) == pytest.approx(scipy_stats.spearmanr([1, 2, 3, 5], [2, 1, 4, 7])[0])
    assert np.isnan(common.rank_correlation(first, np.ones(5)))
    assert common.depth_trend(np.array([9.0, 4, 1])) == pytest.approx(-1)


def test_groups_are_texts_by_length():
    info = [{"text": text, "length": n} for n in (64, 32) for text in ("needle", "document") for _ in range(2)]
    rows = table([{"sample_info": one, "method": None, "error": None} for one in info])
    assert [(name, len(part)) for name, part in common.groups(rows)] == [
        ("documents, 32 tokens", 2),
        ("needle prompts, 32 tokens", 2),
        ("documents, 64 tokens", 2),
        ("needle prompts, 64 tokens", 2),
    ]
    assert common.with_ends(0.5, np.nan, np.nan) == "0.500" and common.with_ends(0.5, 0.25, 1, 2) == "0.50 [0.25, 1.00]"


def test_needles_outside_the_recent_window_only():
    """Depths leave room at both ends, so that neither sinks nor recency keep a needle by chance."""
    task = ContextRedundancy(documents=0, needles=10)
    assert task.settings()["depths"] == (10, 30, 50, 70, 90)
