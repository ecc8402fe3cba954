"""The runner: one prefill per need, rows that say what happened, protocols, own data, Python."""

import json

import pandas as pd
import pytest

import pvcbench
from pvcbench.config import building, compose
from pvcbench.engine.engine import Engine
from pvcbench.errors import UserError
from pvcbench.policy import Method
from pvcbench.runs import identity, runner
from pvcbench.runs.rows import load_table, read_rows

TINY = ["model=random", "threads=1", "wandb.mode=disabled", "task.lengths=[600]", "limit=2"]
COLUMNS = """task sample sample_info cluster prompt_sha256 protocol method budget reference budget_entries prompt_tokens
question_tokens kept_entries kept_fraction evicted_layers kv_bytes state_bytes spans_kept score metrics output prefill_s
decode_s peak_bytes error""".split()


def run(tmp_path, *overrides, **objects):
    """A run of the tiny model."""
    return runner.run(compose.composed([*TINY, f"results={tmp_path}", *overrides]), figures=False, **objects)


def comparable(result):
    """Rows without times, in a fixed order."""
    frame = result.rows.drop(columns=["prefill_s", "decode_s", "run", "folder"])
    return frame.sort_values(["sample", "method", "budget"]).reset_index(drop=True)


@pytest.fixture
def prefills(monkeypatch):
    """Every prefill that runs, as the pruner it ran for."""
    seen = []
    real = Engine.prefill

    def counted(self, ids, methods=(), pruner=None, *rest, **more):
        if len(ids[0]) > 100:  # not the check of the model, nor the trial of the methods
            seen.append(pruner)
        return real(self, ids, methods, pruner, *rest, **more)

    monkeypatch.setattr(Engine, "prefill", counted)
    return seen


def test_one_prefill_serves_all_post_prefill_cells(tmp_path, prefills):
    budgets = "budgets=[0.05,0.1,0.2,0.3,0.4,0.5,0.6,0.75]"
    result = run(tmp_path, "method=[h2o,streaming_llm,random]", budgets)
    assert len(result.rows) == 2 * (3 * 8 + 1) and result.rows["error"].isna().all()
    assert prefills == [None, None]  # one per sample, not 24


def test_pruned_prefills_are_counted_beside(tmp_path, prefills):
    result = run(tmp_path, "method=[pvc,h2o]", "budgets=[0.1,0.85,0.9]", "limit=1")
    assert [pruner is not None for pruner in prefills] == [False, True, True]  # 0.1 is out of PvC's reach
    failed = result.rows[result.rows["error"].notna()]
    assert list(failed["method"]) == ["pvc"] and "reach" in failed["error"].iloc[0]
    assert result.summary.set_index(["method", "budget"]).loc[("pvc", "0.1"), "samples"] == 0


def test_rows_carry_the_contract(tmp_path):
    result = run(tmp_path, "method=[h2o,pvc_kv]", "budgets=[0.25,64]", "limit=1")
    rows = read_rows(result.folder / "rows.jsonl")
    assert all(list(row) and set(COLUMNS) <= set(row) for row in rows)
    full, h2o = rows[0], next(row for row in rows if (row["method"], row["budget"]) == ("h2o", "0.25"))
    assert (full["method"], full["budget"], full["kept_fraction"]) == ("full", "1.0", 1.0)
    assert h2o["kept_entries"] == h2o["prompt_tokens"] // 4 and h2o["budget_entries"] == h2o["kept_entries"]
    # 4 layers, 2 KV heads of 16 floats for key and value each
    assert h2o["kv_bytes"] == h2o["kept_entries"] * 4 * 2 * 16 * 2 * 4
    assert len(h2o["spans_kept"]["needle"]) == 4 and full["spans_kept"]["needle"] == [1.0] * 4
    assert h2o["protocol"]["first_token_uncompressed"] is True and h2o["decode_s"] is None
    assert len({row["prompt_sha256"] for row in rows}) == 1
    alone = run(tmp_path / "alone", "method=full", "limit=1")
    assert alone.rows["decode_s"].notna().all()


def test_identity_changes_with_what_changes_numbers(tmp_path):
    base = run(tmp_path, "method=h2o", "budgets=[0.5]")
    same = [["limit=1"], ["batch=2"], ["threads=1"], ["wandb.project=other"]]
    other = [["seed=1"], ["methods.h2o.normalize=true"], ["decode=hold"], ["task.value=number"], ["query_aware=false"]]
    other += [["budgets=[0.4]"], ["model.seed=1"], ["refeed_last=true"], ["engine.backend=reference"]]
    ids = {run(tmp_path, "method=h2o", "budgets=[0.5]", *change).folder for change in same}
    assert ids == {base.folder}
    others = {run(tmp_path, "method=h2o", "budgets=[0.5]", "limit=1", *change).folder for change in other}
    assert len(others | ids) == len(other) + 1


@pytest.mark.parametrize("decode", ["grow", "hold"])
@pytest.mark.parametrize("aware", ["query_aware=true", "query_aware=false", "refeed_last=true"])
@pytest.mark.sampled(2)
def test_protocols_answer_like_full_at_full_budget(tmp_path, decode, aware):
    methods = building.build_methods(compose.composed([f"method=[{','.join(compose.complete('method'))}]"]).methods)
    suits = {name for name, m in methods.items() if decode in m.decodes and "generate" in m.protocols}
    unasked = {name for name in suits if aware == "query_aware=false" and methods[name].needs_question}
    fit = {name for name in suits if methods[name].own_budget is None and not methods[name].ends_at_budget}
    names = [name for name in fit - unasked if not methods[name].unnamed]
    names.sort()
    result = run(tmp_path, f"method=[{','.join(names)}]", "budgets=[1.0]", f"decode={decode}", aware)
    assert result.rows["error"].isna().all()
    assert (result.rows.groupby("sample")["output"].nunique() == 1).all()
    protocol = result.rows["protocol"].iloc[0]
    assert protocol["first_token_uncompressed"] is (aware == "query_aware=true")
    lengths = result.rows.groupby("sample")[["prompt_tokens", "question_tokens", "kept_entries"]].first()
    fed = {"query_aware=true": 0, "refeed_last=true": 1}.get(aware)
    expected = lengths["prompt_tokens"] - (lengths["question_tokens"] if fed is None else fed)
    assert (lengths["kept_entries"] == expected).all()


@pytest.mark.parametrize("decode", ["grow", "hold"])
@pytest.mark.sampled(1)
def test_batches_equal_single_samples(tmp_path, decode):
    methods = ["method=[h2o,streaming_llm,random,pvc_kv,pvc]", "budgets=[0.3,0.9]", f"decode={decode}", "limit=3"]
    haystack = ["task.haystack=noise", "query_aware=false", "task.lengths=[300]", "task.max_new_tokens=8"]
    single = run(tmp_path / "single", *methods, *haystack)
    batched = run(tmp_path / "batched", *methods, *haystack, "batch=3")
    pd.testing.assert_frame_equal(comparable(single), comparable(batched))


def test_waves_split_when_memory_is_short(tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", "method=[h2o,random]", "budgets=[0.3,0.9]")
    monkeypatch.setattr(Engine, "free_bytes", lambda self: 2_500_000)  # about two full caches
    parts = run(tmp_path / "parts", "method=[h2o,random]", "budgets=[0.3,0.9]")
    pd.testing.assert_frame_equal(comparable(whole), comparable(parts))


def test_a_failing_method_is_a_row_and_can_be_retried(tmp_path, monkeypatch):
    methods = building.build_methods(compose.composed(["method=[h2o,random]"]).methods)

    monkeypatch.setattr(
        identity, "of_method", lambda method: {"class": type(method).__name__}
    )  # one run, broken or not
    broken_class = type(methods["random"])
    real = broken_class.plan

    def broken(method, scores, budget, shape):
        if shape.tokens > 300:  # longer than the prompt of its trial
            raise RuntimeError("no\nplan today")
        return real(method, scores, budget, shape)

    monkeypatch.setattr(broken_class, "plan", broken, raising=False)
    asked = [tmp_path, "method=[h2o,random]", "budgets=[0.5]", "limit=1"]
    first, second = (run(*asked, methods=methods) for _ in range(2))  # measured, then found as it was
    assert first.measured and not second.measured
    assert len(second.failed) == 1 and "no cell of random has a value" in second.failed[0]
    rows = load_table(tmp_path)
    failed = rows[rows["error"].notna()]
    assert list(failed["method"]) == ["random"]
    assert f"({__file__}:" in failed["error"].iloc[0] and "RuntimeError: no plan today" in failed["error"].iloc[0]
    monkeypatch.setattr(broken_class, "plan", real)
    again = run(*asked, "retry_failed=true", methods=methods)
    assert again.measured == len(failed) and again.rows["error"].isna().all()


def test_own_data(tmp_path):
    path = tmp_path / "mine.jsonl"
    lines = [
        {"context": "The door is red. " * 20, "question": "Which colour?", "answers": "red", "needle": "door is red"}
    ]
    lines += [{"id": "b", "context": "x " * 200, "question": "Why?", "answers": ["yes", "no"], "metric": "exact"}]
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    settings = ["model=random", "threads=1", "wandb.mode=disabled", "task=jsonl", f"task.path={path}", "method=h2o"]
    result = runner.run(
        compose.composed([*settings, f"results={tmp_path}", "budgets=[0.5]", "task.max_new_tokens=4"]), figures=False
    )
    assert set(result.rows["sample"]) == {"1", "b"} and result.rows["error"].isna().all()
    metrics = {sample: set(rows["metrics"].iloc[0]) for sample, rows in result.rows.groupby("sample")}
    assert metrics == {"1": {"contains"}, "b": {"exact"}}
    for broken, expected in (("{", "line 1"), ('{"context": "a"}', "line 1"), ("", "no samples")):
        path.write_text(broken)
        with pytest.raises(UserError, match=expected):
            runner.run(compose.composed([*settings, f"results={tmp_path}"]))


def test_evaluate_from_python(tmp_path):
    settings = {"results": str(tmp_path), "limit": 2, "threads": 1, "wandb__mode": "disabled", "task__lengths": [600]}
    settings |= {"figures": False}
    table = pvcbench.evaluate("random", "needle", ["h2o"], budgets=[0.5], **settings)
    assert list(table["method"]) == ["full", "h2o"] and table["kept_fraction"].round(2).tolist() == [1.0, 0.5]

    class Oldest(Method):
        """Keeps the first entries."""

        def scores(self, seen):
            return -seen.positions.double()

    own = pvcbench.evaluate("random", "needle", {"oldest": Oldest()}, budgets=[0.5], **settings)
    assert set(own["method"]) == {"full", "oldest"}
