"""A finished command line is answered from its receipt, without torch, while all that it was made of stands."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from pvcbench.config import building, compose
from pvcbench.models import loading, random_weights
from pvcbench.runs import receipts, runner
from pvcbench.runs.result import Mirror, report
from pvcbench.runs.rows import run_folders

ROOT = Path(__file__).parents[2]
OWN = """from dataclasses import dataclass
import own_helper
from pvcbench.policy import Method

@dataclass(frozen=True)
class Newest(Method):
    def scores(self, seen):
        return seen.positions.float() * own_helper.SIGN
"""


@pytest.fixture
def asked(tmp_path):
    """A command line whose model, data and method lie in files of a folder; made by a function of more settings."""
    shape = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=2, eos_token_id=0)).save_pretrained(tmp_path / "model")
    random_weights.byte_tokenizer().save_pretrained(tmp_path / "model")
    line = {"context": "The sky is blue. " * 9, "question": "What colour?", "answers": ["blue"], "needle": "sky"}
    (tmp_path / "data.jsonl").write_text(json.dumps(line) + "\n")
    own = tmp_path / "conf"
    (own / "method").mkdir(parents=True)
    (own / "own_newest.py").write_text(OWN)
    (own / "own_helper.py").write_text("SIGN = 1\n")
    (own / "method" / "newest.yaml").write_text(
        "# @package methods.newest\n# Keeps the newest\n_target_: own_newest.Newest\n"
    )
    texts = ["model=hf", f"model.name={tmp_path}/model", "task=jsonl", f"task.path={tmp_path}/data.jsonl"]
    texts += ["method=newest", "budgets=[0.5]", "task.max_new_tokens=2", "threads=1", "wandb.mode=disabled"]
    texts += [f"results={tmp_path}/results", "device=cpu", "figures=false"]
    yield lambda *more: compose.composed([*texts, *more], [own])
    for name in ("own_newest", "own_helper"):
        sys.modules.pop(name, None)
    sys.path.remove(str(own))


def test_a_receipt_gives_what_the_run_gave(asked):
    first = runner.run(asked())
    known = receipts.find(asked())
    again = report(known.folder, known.task, 0, known.asked, Mirror.of(asked()), figures=False)
    assert first.measured == 2 and again.measured == 0 and again.folder == first.folder
    assert again.summary.equals(first.summary) and again.rows.equals(first.rows)
    assert runner.run(asked()).measured == 0  # and so does the run that is looked up in the usual way


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


CHANGES = {
    "model.name/generation_config.json": ('"eos_token_id": 0', '"eos_token_id": 1'),
    "model.name/tokenizer_config.json": ("<end>", "<eos>"),
    "data.jsonl": ("sky", "sea"),
    "conf/own_newest.py": ("positions.float()", "positions.double()"),
    "conf/own_helper.py": ("1", "-1"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_file_makes_it_void(asked, tmp_path, name):
    runner.run(asked())
    edit(tmp_path / name.replace("model.name", "model"), *CHANGES[name])
    assert receipts.find(asked()) is None


def test_a_file_that_takes_the_place_of_a_module_makes_it_void(asked, tmp_path, monkeypatch):
    runner.run(asked())
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "own_helper.py").write_text("SIGN = -1\n")
    monkeypatch.syspath_prepend(str(tmp_path / "first"))
    assert receipts.find(asked()) is None


def test_rows_that_are_gone_make_it_void(asked):
    folder = runner.run(asked()).folder
    lines = (folder / "rows.jsonl").read_text().splitlines(keepends=True)
    (folder / "rows.jsonl").write_text(lines[0])
    assert receipts.find(asked()) is None
    assert runner.run(asked()).measured == 1
    assert receipts.find(asked()) is not None
    (folder / "rows-1of2.jsonl").write_text("")
    assert receipts.find(asked()) is None


def test_another_command_line_or_place_has_none(asked, monkeypatch):
    runner.run(asked())
    assert receipts.find(asked("seed=1")) is None and receipts.find(asked("retry_failed=true")) is None
    monkeypatch.setenv("HF_HOME", "/elsewhere")
    assert receipts.find(asked()) is None


def test_an_unreadable_receipt_is_none(asked, tmp_path):
    runner.run(asked())
    (path,) = (tmp_path / "results" / receipts.FOLDER).iterdir()
    for text in ("{", "[]", "{}", json.dumps({"run": 3})):
        path.write_text(text)
        assert receipts.find(asked()) is None


def test_objects_from_python_leave_none(asked, tmp_path):
    task = building.build(asked().task, "the task")
    runner.run(asked(), task=task)
    assert not (tmp_path / "results" / receipts.FOLDER).exists()


def test_a_model_of_the_hub_leaves_none():
    assert loading.files_of("ORG/NAME") is None and loading.files_of(ROOT / "conf", "ORG/NAME") is None
    assert str(ROOT / "conf" / "config.yaml") in loading.files_of(ROOT / "conf")


def test_a_finished_command_line_imports_no_torch(tmp_path):
    line = ["model=random", "method=h2o", "budgets=[0.5]", "limit=1", "task.lengths=[300]", "wandb.mode=disabled"]
    line += ["threads=1", f"results={tmp_path}", "task.max_new_tokens=2"]
    code = "import sys; from pvcbench.cli.main import main; "
    code += "sys.exit(main(sys.argv[1:]) or 10 * ('torch' in sys.modules))"
    ask = [sys.executable, "-c", code, *line]
    own = {**os.environ, "PYTHONPATH": str(ROOT)}
    first, again = (subprocess.run(ask, capture_output=True, text=True, env=own, check=False) for _ in range(2))
    assert (first.returncode, again.returncode) == (10, 0), again.stderr
    assert "finished before" in again.stdout and "finished before" not in first.stdout
    table = [
        text.partition("\nfigure")[0].replace("This run was finished before; nothing was measured again.", "")
        for text in (first.stdout, again.stdout)
    ]
    assert table[0].strip() == table[1].strip()
    assert len(run_folders(tmp_path)) == 1
