"""Several sampled answers to one prompt: a row each, by its own seed, over one prefill and one compressed cache."""

import json

import pytest
import torch

from pvcbench.board import row_schema
from pvcbench.config import building, compose
from pvcbench.engine.engine import Engine
from pvcbench.engine.sampling import Sampled, Sampling
from pvcbench.errors import UserError
from pvcbench.evaluation.row import Protocol
from pvcbench.evaluation.shared_prefill import draw_of
from pvcbench.runs import runner
from pvcbench.runs.rows import read_rows
from pvcbench.runs.run_id import run_id
from pvcbench.runs.spec import RunSpec
from pvcbench.runs.verify import verify

SMALL = ["model=random", "dtype=float64", "threads=1", "wandb.mode=disabled", "task.lengths=[300]", "limit=2"]
SMALL += ["task.max_new_tokens=12", "method=[h2o,random,tova]", "budgets=[0.5,60]"]
DRAWN = ["sampling.temperature=1.5", "sampling.top_p=0.95", "sampling.n=3"]
HOLD = ["decode=hold", "interval=4"]
TIMES = ("prefill_s", "decode_s")


def run(folder, *overrides):
    return runner.run(compose.composed([*SMALL, *overrides, f"results={folder}"]), figures=False)


def plain(result):
    """All rows without times, in a fixed order, as text."""
    rows = [{key: row[key] for key in row if key not in TIMES} for row in read_rows(result.folder)]
    return [json.dumps(row) for row in sorted(rows, key=lambda row: (row["sample"], row["method"], row["budget"]))]


@pytest.fixture
def prefills(monkeypatch):
    """The tokens of every prefill of a prompt."""
    found, real = [], Engine.prefill

    def prefill(self, ids, *args, **options):
        found.extend([len(ids)] if ids.shape[1] > 200 else [])
        return real(self, ids, *args, **options)

    monkeypatch.setattr(Engine, "prefill", prefill)
    return found


@pytest.mark.parametrize("more", [[], HOLD, ["query_aware=false"]], ids=["grow", "hold", "agnostic"])
@pytest.mark.sampled(1)
def test_draws_share_a_prefill_and_are_those_of_each_alone(tmp_path, monkeypatch, prefills, more):
    together = run(tmp_path / "together", *DRAWN, *more)
    assert prefills == [1, 1]
    monkeypatch.setattr(Protocol, "shares", lambda self, item: None)
    alone = run(tmp_path / "alone", *DRAWN, *more)
    assert prefills[2:] == [1] * 6
    assert plain(together) == plain(alone)
    rows = read_rows(together.folder)
    assert len(rows) == 2 * 3 * 7 and all(row["error"] is None for row in rows)
    assert {(row["sample"], row["problem"], row["draw"], row["cluster"]) for row in rows} == {
        (f"{name}#{draw}", name, draw, rows[0]["cluster"] if name == rows[0]["problem"] else rows[-1]["cluster"])
        for name in {row["problem"] for row in rows}
        for draw in range(3)
    }
    full = {row["output"] for row in rows if row["reference"] and row["problem"] == rows[0]["problem"]}
    assert len(full) == 3  # at this temperature draws differ
    assert rows[0]["protocol"]["sampling"] == {"temperature": 1.5, "top_p": 0.95, "top_k": None, "n": 3}


def test_rows_do_not_depend_on_cells_batch_shards_or_an_interruption(tmp_path):
    whole = run(tmp_path / "whole", *DRAWN)
    few = run(tmp_path / "few", *DRAWN, "method=h2o", "batch=2")
    assert set(plain(few)) <= set(plain(whole)) and len(plain(few)) == 2 * 3 * 3
    path, lines = whole.folder / "rows.jsonl", (whole.folder / "rows.jsonl").read_text().splitlines(True)
    before = plain(whole)
    path.write_text("".join(lines[::3]))
    assert plain(run(tmp_path / "whole", *DRAWN)) == before
    for part in ("1/2", "2/2"):
        last = run(tmp_path / "shards", *DRAWN, f"shard={part}")
    assert plain(last) == before and len(last.summary) == 7


def test_the_full_cache_draws_what_the_unmodified_model_draws(tmp_path):
    result = run(tmp_path, *DRAWN, "limit=1")
    config = compose.composed([*SMALL, *DRAWN])
    spec = RunSpec.of(config)
    loaded = spec.load()
    spec.task.prepare(loaded.prompter())
    sample = spec.task.sample(0, 0)
    prompt = torch.tensor([list(spec.task.encode(sample).ids)])
    sampling = Sampling(1.5, 0.95, None, 3)
    for row in (row for row in read_rows(result.folder) if row["reference"]):
        choose, said = Sampled(sampling, [draw_of(0, row["sample"])]), []
        while len(said) < 12:
            ids = torch.cat([prompt, torch.tensor([said], dtype=torch.int64)], 1)
            with torch.inference_mode():
                [token] = choose(loaded.model(ids).logits[:, -1], [0])
            if token in loaded.ends:
                break
            said.append(token)
        assert row["output"] == loaded.prompter().decode(said)
        assert (row["answer_tokens"], row["truncated"]) == (len(said), len(said) == 12)


def test_a_drawn_run_verifies_and_its_rows_are_of_the_schema(tmp_path):
    result = run(tmp_path, *DRAWN, "limit=1")
    told = []
    report = verify(result.folder, say=told.append)
    assert report.agree and report.compared >= 8, told
    spec = RunSpec.of(compose.composed([*SMALL, *DRAWN]))
    identity = spec.identity(spec.load())
    rows = row_schema.checked((result.folder / "rows.jsonl").read_bytes(), "rows.jsonl", identity)
    other = {**identity, "sampling": {**identity["sampling"], "top_p": 0.9}}
    assert rows and row_schema.foreign(rows[0], identity) is None and "sampling" in row_schema.foreign(rows[0], other)


def test_only_drawn_answers_change_the_id(tmp_path):
    def identity(*overrides):
        spec = RunSpec.of(compose.composed([*SMALL, *overrides]))
        return spec.identity(spec.load())

    greedy = identity()
    assert not {"sampling", "stop_repeats"} & greedy.keys()
    others = [DRAWN, [*DRAWN, "sampling.n=4"], [*DRAWN, "sampling.top_k=5"], ["stop_repeats.ngram=10"]]
    ids = {run_id(identity(*one)) for one in others}
    assert len(ids) == 4 and run_id(greedy) not in ids
    row = read_rows(run(tmp_path, "limit=1").folder)[0]
    assert not {"sampling", "stop_repeats"} & row["protocol"].keys() and not {"draw", "problem"} & row.keys()


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["sampling.n=3"], "set sampling.temperature"),
        (["sampling.temperature=0"], "from 0.01 to 100"),
        (["sampling.temperature=1", "sampling.top_p=0"], "top_p must be"),
        (["sampling.temperature=1", "sampling.top_k=0"], "top_k must be 1 or more"),
        (["stop_repeats.ngram=0"], "ngram must be 1 or more"),
    ],
)
def test_what_no_answer_can_be_drawn_by_is_refused(tmp_path, overrides, told):
    with pytest.raises(UserError, match=told):
        run(tmp_path, *overrides)


@pytest.mark.parametrize("key", ["sampling.temperature=1", "stop_repeats.ngram=10"])
def test_a_task_without_answers_refuses(key):
    config = compose.composed(["model=random", "task=perplexity", "method=h2o", key])
    with pytest.raises(UserError, match=f"leave {key.partition('=')[0]}=null"):
        RunSpec.of(config, building.build(config.task, "the task"))
