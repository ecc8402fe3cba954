"""Many questions on one context: one prefill and one compression for all of them, and the rows of asking one by one."""

import json

import pytest
import torch

from pvcbench.config import building, compose
from pvcbench.engine import engine as engines
from pvcbench.engine.engine import Engine
from pvcbench.engine.evict import Group
from pvcbench.errors import UserError
from pvcbench.evaluation.row import Protocol
from pvcbench.runs import runner

SMALL = ["model=random", "dtype=float64", "threads=1", "wandb.mode=disabled", "query_aware=false", "budgets=[0.6,100]"]
NEEDLE = ["task.lengths=[500]", "task.depths=[40]", "task.repeats=2", "task.max_new_tokens=6"]
ASKED = ["task.needles=4", "task.questions=4"]
METHODS = "method=[h2o,random,pvc,ada_snapkv,kvzip,streaming_llm,oracle_answer]"
HOLDING = "method=[h2o,random,pvc,tova,streaming_llm]"


@pytest.fixture
def calls(monkeypatch):
    """How many prompts were prefilled, and how many cells were cut out of them."""
    found = {"prefills": 0, "cells": 0}
    real, fork = Engine.prefill, engines.fork

    def prefill(self, ids, *args, **options):
        found["prefills"] += ids.shape[1] > 200  # neither the check of the model nor the trial of the methods
        return real(self, ids, *args, **options)

    def counted(prefill, cells, *args, **options):
        found["cells"] += len(cells) * (prefill.shape.tokens > 200)
        return fork(prefill, cells, *args, **options)

    monkeypatch.setattr(Engine, "prefill", prefill)
    monkeypatch.setattr(engines, "fork", counted)
    return found


def rows(folder, *overrides):
    """All rows without times, in a fixed order."""
    result = runner.run(compose.composed([*SMALL, *NEEDLE, *ASKED, *overrides, f"results={folder}"]), figures=False)
    known = result.rows.drop(columns=["prefill_s", "decode_s", "folder"])
    return known.sort_values(["sample", "method", "budget"]).reset_index(drop=True)


@pytest.mark.parametrize("more", [[METHODS], [HOLDING, "decode=hold"]], ids=["grow", "hold"])
@pytest.mark.sampled(1)
def test_rows_are_those_of_asking_one_at_a_time(tmp_path, monkeypatch, calls, more):
    together = rows(tmp_path / "together", *more)
    shared, calls["prefills"] = calls["prefills"], 0
    monkeypatch.setattr(Protocol, "shares", lambda self, item: None)
    alone = rows(tmp_path / "alone", *more)
    assert len(together) == len(alone) == 8 * together.groupby(["method", "budget"]).ngroups
    assert calls["prefills"] > shared
    for place, (one, other) in enumerate(zip(together.to_dict("records"), alone.to_dict("records"), strict=True)):
        assert json.dumps(one, default=str) == json.dumps(other, default=str), place


def test_a_context_is_prefilled_and_cut_once(tmp_path, calls):
    found = rows(tmp_path, "method=[h2o,snapkv]")
    assert calls == {"prefills": 2, "cells": 2 * 5}
    assert found["cluster"].nunique() == 2 and found["sample"].nunique() == 8


def test_questions_seen_before_the_cut_are_asked_alone(tmp_path, calls):
    rows(tmp_path, "method=h2o", "query_aware=true", "task.repeats=1")
    assert calls["prefills"] == 4


def test_little_memory_changes_no_row(tmp_path, monkeypatch):
    usual = rows(tmp_path / "usual", "method=[h2o,snapkv]")
    monkeypatch.setattr(Engine, "free_bytes", lambda self: 1)
    assert usual.equals(rows(tmp_path / "little", "method=[h2o,snapkv]"))


def test_memory_that_ends_while_caches_are_copied_loses_no_row(tmp_path, monkeypatch):
    usual, repeated = rows(tmp_path / "usual", "method=[h2o,snapkv]"), Group.repeated

    def short(self, count):
        if count > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return repeated(self, count)

    monkeypatch.setattr(Group, "repeated", short)
    assert usual.equals(rows(tmp_path / "short", "method=[h2o,snapkv]"))


def test_a_method_that_fails_sinks_neither_others_nor_other_questions(tmp_path, monkeypatch):
    kind = type(building.build_methods(compose.composed(["method=tova"]).methods)["tova"])

    def plan(self, scores, budget, shape):
        if shape.tokens > 200:
            raise ZeroDivisionError("on purpose")
        return super(kind, self).plan(scores, budget, shape)

    monkeypatch.setattr(kind, "plan", plan)
    found = rows(tmp_path, "method=[tova,h2o]").set_index("method")
    assert found.loc["tova", "error"].notna().all() and found.loc[["full", "h2o"], "error"].isna().all()


def test_every_question_asks_for_needles_of_its_own(tmp_path):
    from pvcbench.models.random_weights import byte_tokenizer
    from pvcbench.tasks.prompts import Prompter

    task = building.build(
        compose.composed([*NEEDLE, "task.needles=4", "task.questions=2", "task.asked=2"]).task, "task"
    )
    task.prepare(Prompter(byte_tokenizer()))
    first, second = task.sample(0, 0), task.sample(0, 1)
    assert first.context == second.context and first.context_id == second.context_id == "0-0"
    assert not set(first.answers) & set(second.answers) and len(first.answers) == 2
    for sample in (first, second):
        start, stop = sample.spans["needle"]
        assert sample.answers[0] in sample.context[start:stop]
    assert task.sample(0, 2).context_id == "0-1" and task.size(0) == 4
    with pytest.raises(UserError, match=r"task\.questions times task\.asked"):
        building.build(compose.composed(["task.needles=3", "task.questions=2", "task.asked=2"]).task, "task")


def test_lines_of_a_file_share_a_context(tmp_path, calls):
    text = "The key of the mill is iron. The key of the barn is brass. " * 6
    lines = [{"context": text, "question": "Mill?", "answers": "iron", "context_id": "a"}]
    lines += [{"context": "", "question": "And the barn?", "answers": "brass", "context_id": "a"}]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    config = [*SMALL, "task=jsonl", f"task.path={path}", "method=h2o", f"results={tmp_path}"]
    found = runner.run(compose.composed(config), figures=False).rows
    assert calls["prefills"] == 1 and set(found["cluster"]) == {"a"} and found["error"].isna().all()
    path.write_text("\n".join(map(json.dumps, [lines[0], {**lines[1], "context": "another"}])))
    with pytest.raises(UserError, match="context: found another text than the first line with context_id"):
        runner.run(compose.composed(config), figures=False)
