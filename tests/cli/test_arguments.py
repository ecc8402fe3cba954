"""Arguments: names of files need no quotes, own folders of configuration count, mistakes are told before torch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

import pvcbench
from pvcbench.cli import exits, main
from pvcbench.config import building, compose, overrides, settings
from pvcbench.errors import UserError
from pvcbench.sweeps import manifest

ROOT = Path(__file__).parents[2]
NAMES = ["a=b.jsonl", "données été.jsonl", "file(1).jsonl", "a,b.jsonl", "with space.jsonl", "100%.jsonl", "a#b.jsonl"]
NAMES += ["q&a.jsonl", "naïve.jsonl", "试.jsonl", "a'b.jsonl", "x{1}.jsonl", "$HOME.jsonl", "~x.jsonl", "a[1].jsonl"]
NAMES += [
    "lr=1e-4,seed=0.jsonl",
    "my dir(1)/é.jsonl",
    "[1]",
    "{a:b}",
    "001",
    "1e5",
    "true",
    "int(3)",
    "a:b@c",
    '"a',
    "=x",
]
NAMES += ["a\\b.jsonl", "a`b", "a;b", "a|b", "*", "!x", " begins and ends with a blank "]
ROUND = ["a", "a'b", "a\\", "\\'", "${x}", "\\${x}", "\\\\${x}\\", 'a"b', "\n", "é"]


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


# ------------------------------------------------------------------------------------------------ plain text


@given(st.one_of(st.sampled_from(ROUND), st.text(alphabet="ab'\"\\${}[](), =\né试", max_size=12)))
def test_quoted_text_reads_as_itself(text):
    value = overrides.parsed(f"key={overrides.quoted(text)}").value()
    assert OmegaConf.create({"key": value}).key == text


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_taken_as_it_stands(name):
    made = compose.composed(["task=jsonl", f"task.path={name}", f"results={name}"])
    assert (made.task.path, made.results) == (name, name)
    settings.check(made)


@pytest.mark.parametrize("name", [name for name in NAMES if "," not in name])
@pytest.mark.sampled(8)
def test_names_in_a_multirun(name):
    runs = manifest.combinations(["task=jsonl", f"task.path={name}", "seed=0,1"])
    assert [(compose.composed(run).task.path, compose.composed(run).seed) for run in runs] == [(name, 0), (name, 1)]


def test_commas_of_a_multirun_separate_names():
    runs = manifest.combinations(["task=jsonl", "task.path=a=b.jsonl,试.jsonl", "results='x,(1)'"])
    made = [compose.composed(run) for run in runs]
    assert [one.task.path for one in made] == ["a=b.jsonl", "试.jsonl"] and {one.results for one in made} == {"x,(1)"}


def test_shards_may_be_runs_of_a_multirun():
    assert manifest.combinations(["shard=1/2,2/2"]) == [["shard=1/2"], ["shard=2/2"]]
    with pytest.raises(UserError, match="--shards N"):
        manifest.lines_of(["shard=1/2"], 2, [])


def test_hydras_grammar_is_left_alone():
    given = ["task=jsonl", "task.path='a b.jsonl'", "results=out/${experiment}", "experiment=x", "model.chat=null"]
    made = compose.composed([*given, "budgets=[64,0.5]", "methods.pvc.recent_ratio=0.1", "~methods.pvc.prune"])
    assert (made.task.path, made.results, list(made.budgets)) == ("a b.jsonl", "out/x", [64, 0.5])
    assert made.methods.pvc.recent_ratio == 0.1 and "prune" not in made.methods.pvc


def test_python_passes_any_text(tmp_path):
    path = tmp_path / "a=b ${c} (1).jsonl"
    made = compose.composed(["task=jsonl", f"task.path={compose.written(path)}", f"results={compose.written('${x}')}"])
    assert (made.task.path, made.results) == (str(path), "${x}")


def test_a_home_that_is_nobodys_is_a_name(tmp_path, monkeypatch):
    from pvcbench.places import user_path

    assert user_path("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/x") == tmp_path / "x"


# ------------------------------------------------------------------------------------------------ mistakes

MISTAKES = {
    "seed=-1": "seed must be 0 or more, not -1",
    "seed=1.5": "seed must be a whole number of 0 or more, not 1.5",
    "seed=null": "seed must be a whole number",
    "seed=[1]": "seed must be a whole number",
    "seed=0,1": "--multirun",
    "seed=99999999999999999999": "or less",
    "limit=0": "limit must be 1 or more",
    "limit=x": "limit must be a whole number of 1 or more, or null, not x",
    "batch=0": "batch must be 1 or more",
    "batch=null": "batch must be a whole number",
    "threads=x": "threads must be a whole number",
    "threads=0": "threads must be 1 or more",
    "dtype=foo": "dtype must be auto, float32, bfloat16, float16 or float64, or null, not 'foo'",
    "dtype=3": "dtype must be",
    "decode=shrink": "decode must be grow or hold, not 'shrink'",
    "decode=null": "decode must be grow or hold",
    "query_aware=maybe": "query_aware must be true or false, not maybe",
    "query_aware=2": "query_aware must be true or false, not 2",
    "refeed_last=null": "refeed_last must be true or false",
    "retry_failed=3": "retry_failed must be true or false",
    "figures=3": "figures must be true or false",
    "device=null": "device must be text",
    "shard=x": "shard must be a part of a whole such as 1/4",
    "shard=5/4": "shard must be a part of a whole",
    "wandb.mode=of": "wandb.mode must be offline, online or disabled, not 'of'",
    "wandb=3": "wandb must be a mapping",
    "wandb.foo=1": "did you mean 'wandb.mode'",
    "+wandb.foo=1": "did you mean 'wandb.mode'",
    "engine=null": "engine must be a mapping",
    "engine.chunk=0": "engine.chunk must be 1 or more",
    "engine.chunk=x": "engine.chunk must be a whole number",
    "engine.backend=foo": "engine.backend must be blocked, reference or triton",
    "budgets=[2.0]": "write 2 for entries",
    "budgets=[nan]": "a share lies in (0, 1], not nan; write one such as 0.25",
    "budgets=[inf]": "a share lies in (0, 1], not inf",
    "budgets=[-0.5]": "a share lies in (0, 1], not -0.5; write one such as 0.25",
    "budgets=[0.1,0.2": "budgets must be a list such as [64,0.25,0.5]",
    "budgets=null": "budgets must be a list",
    "budgets={a:1}": "budgets must be a list",
    "method=null": "method=null names no method",
    "method=3": "names no method",
    "method=": "names no method",
    "method=snapvk": "unknown method 'snapvk': did you mean 'snapkv'",
    "method=PvC": "unknown method 'PvC': did you mean 'pvc'",
    "method=[snapvk,h2o]": "unknown method 'snapvk': did you mean 'snapkv'",
    "method=[h2o,3]": "names no method",
    "method=[h2o": "cannot be read: write method=NAME or 'method=[NAME,NAME]'",
    "method=pvc,h2o": "for one run write method=NAME or 'method=[NAME,NAME]'",
    "+method=h2o": "write method=NAME",
    "methods={}": "methods={} changes nothing",
    "methods=null": "methods cannot be null",
    "methods.pvc=null": "~methods.pvc to leave it out",
    "methods.pvc=3": "methods.pvc must be a mapping",
    "methods.h2o.normalize=true": "this run has no method h2o; write 'method=[h2o,...]'",
    "+methods.x={recent: 1}": "methods.x must be a mapping with a class under _target_",
    "task=null": "task=null names no task: write task=NAME",
    "task={}": "task={} names no task",
    "task=[needle]": "names no task",
    "task=nedle": "did you mean 'needle'",
    "task.path=x": "task.path is a setting of task=jsonl, and this run has another task",
    "task.lengths=[512": "task.lengths must be a list such as [1,2]",
    "model=null": "model=null names no model",
    "model=smolm2": "did you mean 'smollm2'",
    "model.shape=tiny": "model.shape is a setting of model=random",
    "+experiment=quikstart": "did you mean 'quickstart'",
    "+experiment=null": "write +experiment=NAME",
    "experiment=a/b": "experiment must be the name of one folder, not 'a/b'",
    "experiment=a,b": "experiment names one folder",
    "experiment=..": "experiment must be the name of one folder",
    "experiment=": "experiment must be the name of one folder",
    "experiment=null": "experiment must be text",
    "results=": "results must name a folder",
    "results=null": "results must be text",
    "results=file": "is not a folder; set results=FOLDER",
    "results=file/below": "is not a folder; set results=FOLDER",
    "~task": "every run needs task",
    "~seed": "every run needs seed",
    "foo=1": "unknown key 'foo'",
    "+foo=1": "unknown key 'foo'",
    "=3": "write KEY=VALUE",
    "a b=3": "write KEY=VALUE",
    "--foo": "unrecognized arguments",
    "--cfg": "expected one argument",
}
ALONE = """
import io, json, sys, contextlib
from pvcbench.cli import main as cli
told = {}
for wrong in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        told[wrong] = [cli.main([*sys.argv[2:], wrong]), said.getvalue()]
heavy = [name for name in ("torch", "transformers", "scipy", "matplotlib") if name in sys.modules]
print(json.dumps([told, heavy]))
"""


@pytest.mark.parametrize("several", [[], ["--multirun"]], ids=["run", "multirun"])
def test_mistakes_are_told_in_one_line_before_anything_heavy_is_imported(tmp_path, several):
    (tmp_path / "file").write_text("x")
    wrong = [one for one in MISTAKES if not (several and one in ("seed=0,1", "method=pvc,h2o"))]
    command = [sys.executable, "-c", ALONE, json.dumps(wrong), *several]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True)
    told, heavy = json.loads(done.stdout)
    assert heavy == []
    for one in wrong:
        code, said = told[one]
        assert code == 2 and said.count("\n") == 1 and said.startswith("pvcbench: ") and MISTAKES[one] in said, (
            one,
            said,
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_folder_that_may_not_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(settings.os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="may not be written; set results=FOLDER"):
        settings.check(compose.composed([f"results={tmp_path}/new"]))


def test_python_is_told_the_nearest_name(tmp_path):
    for wrong, expected in (
        ({"methods": ["snapvk", "h2o"]}, "did you mean 'snapkv'"),
        ({"task": "nedle"}, "did you mean 'needle'"),
        ({"model": "randm"}, "did you mean 'random'"),
        ({"model": "random", "seed": -1}, "seed must be 0 or more"),
        ({"model": "random", "budgets": [1.5]}, "write 2 for entries"),
        ({"model": "random", "decode": "x"}, "grow or hold"),
    ):
        with pytest.raises(UserError, match=expected):
            pvcbench.evaluate(**{"results": str(tmp_path), **wrong})


def test_the_types_that_are_offered_are_those_that_models_have():
    from pvcbench.models import loading

    assert set(settings.CHOICES["dtype"]) == {*loading.DTYPES, "auto"}


def test_a_task_is_validated_before_the_model_is_loaded(tmp_path, monkeypatch):
    from pvcbench.models import random_weights
    from pvcbench.runs import runner
    from pvcbench.tasks.needle.task import Needle

    def refuse(self):
        raise UserError("line 3 of the data is wrong")

    monkeypatch.setattr(Needle, "validate", refuse)
    monkeypatch.setattr(random_weights, "random", lambda **_: pytest.fail("the model was loaded"))
    with pytest.raises(UserError, match="line 3"):
        runner.run(compose.composed(["model=random", f"results={tmp_path}", "wandb.mode=disabled"]))


def test_another_programs_schema_is_not_ours():
    ConfigStore.instance().store("schema", {"seed": "???", "batch": {"size": 3}})
    assert (compose.composed([]).seed, compose.composed([]).batch) == (0, 1)


# ------------------------------------------------------------------------------------------------ own folders


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder of configuration with a method in `methods`, a task, an experiment, and folders of other names."""
    files = {
        "conf/method/newest.yaml": "# @package methods.newest\n# Mine: the newest.\n_target_: methods.newest.Newest\n",
        "conf/methods/newest.py": "from dataclasses import dataclass\nfrom pvcbench.policy import Method\n\n"
        "@dataclass(frozen=True)\nclass Newest(Method):\n"
        "    def scores(self, seen):\n        return seen.positions.double()\n",
        "conf/task/mine.yaml": "# My data.\n_target_: pvcbench.tasks.jsonl.Jsonl\npath: mine.jsonl\n",
        "conf/model/little.yaml": "# Little.\n_target_: pvcbench.models.random_weights.random\nshape: tiny\n",
        "conf/experiment/trial.yaml": "# @package _global_\n# My trial.\ndefaults:\n  - override /model: little\n"
        "  - override /task: mine\n  - override /method: [newest, h2o]\nexperiment: trial\nbudgets: [0.5]\n",
        "conf/results/old/rows.jsonl": "",
        "conf/seed/note.yaml": "a: 1\n",
        "mine.jsonl": json.dumps({"context": "Red. " * 40, "question": "What?", "answers": ["red"]}) + "\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    building.load_methods_package()
    monkeypatch.setattr(sys.modules["methods"], "__path__", list(sys.modules["methods"].__path__))
    yield tmp_path
    for name in [name for name in sys.modules if name == "methods.newest"]:
        del sys.modules[name]


def test_the_list_shows_own_choices(own, capsys):
    for order in (["--config-dir", "conf", "list"], ["list", "--config-dir=conf"]):
        assert main.main(order) == 0
        said = capsys.readouterr().out
        assert all(
            text in said for text in ("newest", "Mine: the newest.", "My data.", "Little.", "My trial.", "snapkv")
        )
    assert main.main(["list"]) == 0 and "newest  " not in capsys.readouterr().out


def test_own_choices_are_suggested(own, capsys):
    for wrong, expected in (
        ("method=newst", "did you mean 'newest'"),
        ("method=[h2o,newst]", "did you mean 'newest'"),
        ("task=mien", "did you mean 'mine'"),
        ("model=litle", "did you mean 'little'"),
        ("+experiment=trail", "did you mean 'trial'"),
    ):
        assert main.main(["--config-dir", "conf", wrong]) == 2
        assert expected in capsys.readouterr().err


def test_folders_named_as_settings_are_no_groups(own):
    made = compose.composed(["results=out", "seed=3", "limit=1", "+experiment=trial", "experiment=name"], ["conf"])
    assert (made.results, made.seed, made.experiment, made.model.shape) == ("out", 3, "name", "tiny")
    assert set(made.methods) == {"newest", "h2o", "full"} and made.task.path == "mine.jsonl"


@pytest.mark.parametrize("several", [[], ["--multirun"]], ids=["run", "multirun"])
@pytest.mark.slow
def test_own_choices_run(own, several):
    command = [sys.executable, "-m", "pvcbench", *several, "--config-dir", "conf", "+experiment=trial", "threads=1"]
    command += ["wandb.mode=disabled", "results=out (1)/é=1"]
    done = subprocess.run(command, cwd=own, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [rows] = (own / "out (1)" / "é=1" / "trial").rglob("rows.jsonl")
    assert {json.loads(line)["method"] for line in rows.read_text().splitlines()} == {"full", "h2o", "newest"}
    assert not list(own.glob("*.log"))  # Hydra's logging left an empty pvcbench.log where a multirun ran


def test_a_file_that_would_be_passed_over_is_refused(own):
    for name in ("method/pvc.yaml", "methods/h2o.py", "config.yaml"):
        path = own / "conf" / name
        path.write_text("_target_: methods.full.Full\n")
        with pytest.raises(UserError, match=f"{path.name} has the name of a file of pvcbench's own"):
            compose.composed([], ["conf"])
        path.unlink()
    (own / "conf" / "method" / "pvc.yaml").write_bytes((compose.CONF / "method" / "pvc.yaml").read_bytes())
    assert set(compose.composed([], ["conf"]).methods) == {"pvc", "full"}  # the same file says the same


# ------------------------------------------------------------------------------------------------ pipes


PRINTING = [
    ["pvcbench", "list"],
    ["pvcbench", "--help"],
    ["pvcbench", "--cfg", "job"],
    ["pvcbench", "report", "--help"],
]


@pytest.mark.parametrize("arguments", PRINTING, ids=" ".join)
@pytest.mark.parametrize("buffered", [True, False])
def test_a_reader_that_leaves_is_no_failure(tmp_path, arguments, buffered):
    read, write = os.pipe()
    os.close(read)
    known = environment() | ({} if buffered else {"PYTHONUNBUFFERED": "1"})
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(
        command, cwd=tmp_path, env=known, stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_table_that_nobody_reads_is_no_failure(tmp_path):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "pvcbench", "model=random", "method=h2o", "budgets=[0.5]", "limit=1", "threads=1"]
    command += ["wandb.mode=disabled", "task.lengths=[300]", "task.max_new_tokens=2"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert done.returncode == 0 and "pvcbench" not in done.stderr, done.stderr
    assert len(list(tmp_path.rglob("rows.jsonl"))) == 1


def test_a_broken_pipe_of_something_else_is_a_failure(capsys):
    def broken():
        raise BrokenPipeError(32, "Broken pipe")

    assert exits.told(broken) == 1 and "BrokenPipeError" in capsys.readouterr().err
