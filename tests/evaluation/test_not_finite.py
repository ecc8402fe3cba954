"""NaN and infinities: error rows in every kind of task, for every method, beside cells and samples that are sound."""

import json
import math

import pytest
import torch

import pvcbench
import tiny
from pvcbench.config import building, compose
from pvcbench.engine.engine import Engine
from pvcbench.engine.evict import Cell
from pvcbench.errors import MethodError, NotFinite
from pvcbench.evaluation.row import finite
from pvcbench.evaluation.throughput import decode
from pvcbench.models import random_weights
from pvcbench.policy import Method
from pvcbench.runs.rows import load_table

FULL = Cell("1.0", Method(), None, everything=True)
METHODS = ["h2o", "streaming_llm", "knorm", "random"]
BAD = float("nan"), float("inf")


def broken(value, token):
    """The tiny random model, one token of which is embedded as numbers that are not finite."""
    loaded = random_weights.random("tiny", "cpu", None)
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[token] = value
    return loaded


def token_of(text):
    return random_weights.byte_tokenizer()(text)["input_ids"][0]


def rows_of(tmp_path, loaded, task, **settings):
    """The rows of a run, read as JSON without NaN."""
    options = {"budgets": [0.5], "results": str(tmp_path), "wandb__mode": "disabled", "threads": 1, "limit": 2}
    options |= {"figures": False}
    pvcbench.evaluate(loaded, task, settings.pop("methods", METHODS), **options | settings)
    [path] = tmp_path.rglob("rows.jsonl")

    def refuse(name):
        raise AssertionError(f"{name} in a row")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


TASKS = {
    "needle": {"task__lengths": [600]},
    "needle agnostic": {"task__lengths": [600], "query_aware": False},
    "continuation": {"task__prefix": 200, "task__continuation": 40},
    "streaming": {"task__protocol": "streaming", "task__tokens": 200},
}


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("name", TASKS)
@pytest.mark.sampled(3)
def test_every_kind_of_task_gives_error_rows(tmp_path, name, value):
    """A letter that every prompt holds is not finite: no cell has a score, the full cache's least of all."""
    task, loaded = "needle" if "needle" in name else "perplexity", broken(value, token_of("e"))
    rows = rows_of(tmp_path, loaded, task, **TASKS[name])
    assert rows and all(row["score"] is None and "NaN or infinite" in row["error"] for row in rows)


def test_a_throughput_pass_over_such_steps_is_none():
    """Speeds of steps whose logits mean nothing are not reported."""
    host = tiny.engine("llama")
    groups = host.fork(host.prefill(tiny.prompt(20)), [FULL], 8)

    class Steps:
        """A decoder whose third step overflows."""

        def __init__(self):
            self.logits = [torch.zeros(1, 9), torch.zeros(1, 9), torch.full((1, 9), float("nan"))]

        def step(self, ids):
            return self.logits.pop(0)

    assert len(groups) == 1
    assert decode(Steps(), torch.tensor([1]), 3).shape == (1, 3)
    with pytest.raises(NotFinite, match="NaN or infinite"):
        decode(Steps(), torch.tensor([1]), 4)


@pytest.mark.parametrize("value", [*BAD, -float("inf")])
def test_one_row_that_is_not_finite_leaves_the_others_as_they_are(value, monkeypatch):
    """Of two samples that step together one goes wrong in its second step: the other's tokens are its own."""
    host, ids = tiny.engine("llama"), tiny.prompt(20, 2)
    options = {"feed": None, "new_tokens": 6, "ends": ()}
    wanted, _ = host.greedy(host.fork(host.prefill(ids), [FULL], 8), **options)
    real, calls = host.call, []

    def call(fed, cache, keep=None):
        logits = real(fed, cache, keep)
        calls.append(1)
        if len(calls) == 2:
            logits = logits.clone()
            logits[1, 3] = value
        return logits

    groups = host.fork(host.prefill(ids), [FULL], 8)
    monkeypatch.setattr(host, "call", call)
    found, _ = host.greedy(groups, **options)
    assert found[0] == [wanted[0][0], None]


def test_a_batch_is_not_sunk_by_one_sample(tmp_path):
    """Samples that run together: one holds the broken letter, and its neighbours' rows are those they have alone."""
    path = tmp_path / "own.jsonl"
    lines = [{"context": "abc " * 40, "question": letter, "answers": ["x"]} for letter in "bqc"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = {}
    for batch in (1, 3):
        loaded, folder = broken(float("nan"), token_of("q")), tmp_path / str(batch)
        rows = rows_of(folder, loaded, "jsonl", task__path=str(path), batch=batch, limit=3)
        found[batch] = {(r["sample"], r["method"]): (r["output"], r["score"], r["error"] is None) for r in rows}
    assert found[1] == found[3]
    good = [ok for *_, ok in found[1].values()]
    assert sum(good) == 2 * 5 and len(good) == 3 * 5


def test_what_analyses_read_is_refused_too():
    """Captured rows and readings of a model that is not finite."""
    host = Engine(broken(float("nan"), 7).model)
    ids = torch.randint(8, 90, (1, 40))
    prefill = host.prefill(ids, capture=4)
    with pytest.raises(NotFinite):
        host.read(prefill, 30, torch.full((1, 3), 7), torch.full((1, 3), 9))
    with pytest.raises(NotFinite):
        host.prefill(torch.cat((ids, torch.full((1, 2), 7)), 1), capture=4)


def test_a_number_that_is_not_finite_becomes_no_row():
    """Wherever it comes from: a metric of one's own, for one."""
    row = {"sample": "a", "score": 1.0, "metrics": {"own": [0.5, math.nan]}, "output": "x", "error": None}
    mended = finite(row)
    assert mended["score"] is None and "metrics.own.1 is not a finite number" in mended["error"]
    assert finite({"score": 0.5}) == {"score": 0.5}
    json.dumps(mended, allow_nan=False)


# ---------------------------------------------------------------------------------------------- whose fault


class Late(Method):
    """A method that breaks on prompts longer than its trial's."""

    def __hash__(self):
        return 7

    def __eq__(self, other):
        return isinstance(other, Late)

    def scores(self, seen):
        return seen.positions.double() if seen.seen < 300 else seen.positions.half()


def test_a_method_that_fails_on_every_sample_is_told(tmp_path):
    """Its rows say why, the others' rows stand, and the reason comes with file and line."""
    full = building.build_methods(compose.composed(["method=full"]).methods)
    settings = {"task__lengths": [600], "results": str(tmp_path), "wandb__mode": "disabled", "threads": 1, "limit": 2}
    with pytest.warns(UserWarning, match=rf"no cell of late has a value \(2 rows\): .*{__file__}:\d+\) gave float16"):
        pvcbench.evaluate("random", "needle", full | {"late": Late()}, budgets=[0.5], **settings)
    rows = load_table(tmp_path)
    assert rows.groupby("method")["error"].agg(lambda e: e.isna().all()).to_dict() == {"full": True, "late": False}


def test_a_broken_method_ends_the_run_at_once(tmp_path):
    """On its trial, before any sample."""

    class Now(Late):
        def scores(self, seen):
            return seen.positions > 5

    full = building.build_methods(compose.composed(["method=full"]).methods)
    with pytest.raises(MethodError, match=r"Now.scores \(.*\) gave bool .*; wanted: float32 or float64"):
        pvcbench.evaluate("random", "needle", full | {"now": Now()}, budgets=[0.5], results=str(tmp_path), threads=1)
    assert not list(tmp_path.rglob("rows.jsonl"))


def test_a_refused_model_is_given_back(tmp_path):
    """Neither hooks nor attention are left on a model whose check failed."""
    loaded = random_weights.random("tiny", "cpu", None)
    before = loaded.model.config._attn_implementation

    class Now(Late):
        def scores(self, seen):
            raise ValueError("no")

    full = building.build_methods(compose.composed(["method=full"]).methods)
    with pytest.raises(MethodError, match="stopped with ValueError: no"):
        pvcbench.evaluate(loaded, "needle", full | {"now": Now()}, budgets=[0.5], results=str(tmp_path), threads=1)
    assert loaded.model.config._attn_implementation == before
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in loaded.model.modules())
