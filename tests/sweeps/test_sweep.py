"""Sweeps: what is submitted, what a task of the array does, what is known of it; no SLURM needed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pvcbench.cli import exits
from pvcbench.cli import sweep as cli_sweep
from pvcbench.cli.main import main as command
from pvcbench.config import building, compose
from pvcbench.engine.engine import Engine
from pvcbench.errors import UserError
from pvcbench.evaluation import generation
from pvcbench.runs import identity, runner
from pvcbench.runs.rows import load_table, run_folders
from pvcbench.sweeps import manifest, slurm

ROOT = Path(__file__).parents[2]
TINY = ["model=random", "threads=1", "wandb.mode=disabled", "task.lengths=[600]", "task.max_new_tokens=4"]
TINY += ["budgets=[0.5]", "limit=2", "figures=false"]
SCRIPT = ROOT / "scripts" / "slurm" / "sweep.py"


@pytest.fixture(autouse=True)
def _quiet(monkeypatch, tmp_path):
    """Signals as before, no SLURM unless a test fakes one, and a folder of its own."""
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A made-up SLURM: sbatch notes its arguments and answers 17, squeue prints the file `queue`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (tmp_path / "queue").write_text("")
    commands = {"sbatch": f'printf "%s\\n" "$@" >>{tmp_path}/submitted; echo "17;cluster"'}
    commands["squeue"] = f'while IFS= read -r line; do echo "$line"; done <{tmp_path}/queue'
    commands["scontrol"] = f'echo "$@" >>{tmp_path}/asked'
    for name, body in commands.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return tmp_path


def submit(*arguments):
    """The exit code of a submission of a small sweep."""
    return command(["sweep", "submit", "small", *TINY, *arguments])


def sweep(tmp_path):
    return manifest.Sweep(tmp_path / "results" / "sweeps" / "small")


def test_commas_make_runs_by_hydras_grammar():
    made = manifest.combinations(["method=h2o,pvc_kv", "seed=range(0,3)", "budgets=[0.5,0.25]", "experiment=mine"])
    assert len(made) == 6 and made[0] == ["method=h2o", "seed=0", "budgets=[0.5,0.25]", "experiment=mine"]
    assert [one[0] for one in manifest.combinations(["method=[h2o,random],pvc"])] == [
        "method=[h2o,random]",
        "method=pvc",
    ]
    assert [one[0] for one in manifest.combinations(["task.source='a,b',c"])] == ["task.source='a,b'", "task.source=c"]
    assert manifest.combinations(["seed=1", "seed=2,3"]) == [["seed=2"], ["seed=3"]]  # the last one counts
    lines = manifest.lines_of(["seed=0,1"], 3, [])
    assert [(line.index, line.overrides, line.shard) for line in lines[2:4]] == [
        (2, ["seed=0"], "3/3"),
        (3, ["seed=1"], "1/3"),
    ]


MISTAKES = [
    (["shard=1/2"], "--shards N"),
    (["limitt=3"], "did you mean 'limit'"),
    (["method=h2o,h3o"], "did you mean 'h2o'"),
    (["budgets=[0.5],[2.0]"], "budgets"),
    (["methods.pvc.recent=0.1"], "recent"),
    (["seed=interval(0,1)"], "one by one"),
    (["results=a,b"], "one results folder"),
    (["experiment=a,b"], "names one folder"),
    (["seed=[1"], "cannot be read as that"),
    (["--shards", "0"], "--shards must be 1 or more"),
]


@pytest.mark.parametrize("wrong, expected", MISTAKES, ids=[" ".join(wrong) for wrong, _ in MISTAKES])
def test_a_mistake_stops_everything_before_it_is_submitted(fake, capsys, wrong, expected):
    assert submit(*wrong) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and expected in said[0]
    assert not (fake / "submitted").exists() and not (fake / "results").exists()


def test_one_array_over_the_manifest(fake, capsys):
    arguments = ["method=h2o,random", "seed=0,1", "--shards", "2", "--array-limit", "3", "--time", "1:00:00"]
    arguments += ["--warning", "60", "--sbatch", "-p long --mem=8G", "--gpus", "2"]
    assert submit(*arguments, "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "#SBATCH --array=0-7%3" in shown and "# 7: " in shown and not (fake / "results").exists()
    assert submit(*arguments) == 0 and "8 tasks submitted" in capsys.readouterr().out
    here = sweep(fake)
    lines = here.lines()
    assert len(lines) == 8 and lines[5].shard == "2/2" and lines[5].overrides[-2:] == ["method=random", "seed=0"]
    assert (fake / "submitted").read_text().split() == [
        "--parsable",
        "-p",
        "long",
        "--mem=8G",
        str(here.path / "array.sh"),
    ]
    text = (here.path / "array.sh").read_text()
    wanted = "--requeue --open-mode=append --signal=B:USR1@60 --gres=gpu:2 --time=1:00:00 --job-name=pvcbench-small"
    for option in [*wanted.split(), f"--output={here.path}/logs/%A_%a.log"]:
        assert f"#SBATCH {option}\n" in text
    subprocess.run(["bash", "-n", str(here.path / "array.sh")], check=True)
    assert json.loads((here.path / "jobs.jsonl").read_text())["job"] == "17"
    assert submit("--gpus", "0", "--dry-run") == 0 and "gres" not in capsys.readouterr().out


def test_only_what_is_missing_is_submitted_again(fake, capsys):
    assert submit("seed=0,1,2,3") == 0
    (fake / "queue").write_text("17 0 RUNNING\n17 1 PENDING\n99 2 RUNNING\n17 N/A PENDING\n")
    finished = sweep(fake).lines()[3]
    assert command(["sweep", "run", str(sweep(fake).manifest), str(finished.index)]) == 0
    capsys.readouterr()
    assert submit("seed=0,1,2,3") == 0 and "1 tasks submitted, 3 lines" in capsys.readouterr().out
    assert "#SBATCH --array=2\n" in (sweep(fake).path / "array.sh").read_text()
    assert submit("seed=0,1,2") == 2 and "another sweep of this name" in capsys.readouterr().err
    (fake / "bin" / "squeue").write_text("#!/bin/bash\necho 'no controller' >&2; exit 1\n")
    assert submit("seed=0,1,2,3") == 2 and "squeue does not answer: no controller" in capsys.readouterr().err
    assert command(["sweep", "status", "small"]) == 0 and "is not known" in capsys.readouterr().err
    (fake / "bin" / "squeue").write_text("#!/bin/bash\n")
    (fake / "bin" / "sbatch").write_text("#!/bin/bash\necho 'bad partition' >&2; exit 1\n")
    assert submit("seed=0,1,2,3") == 2 and "sbatch refused the array: bad partition" in capsys.readouterr().err


def test_without_slurm_the_manifest_is_written_and_lines_run_one_by_one(tmp_path, capsys, monkeypatch):
    assert submit("method=h2o,random") == 2
    assert "there is no sbatch here" in capsys.readouterr().err
    assert command(["sweep", "status", "small"]) == 0
    assert "2 lines have never started" in capsys.readouterr().out
    for index in "01":
        assert command(["sweep", "run", str(sweep(tmp_path).manifest), index]) == 0
    rows = load_table(tmp_path / "results")
    assert len(rows) == 8 and set(rows["method"]) == {"full", "h2o", "random"}
    monkeypatch.setattr(runner, "run", lambda *_, **__: pytest.fail("it was finished"))
    capsys.readouterr()
    assert command(["sweep", "run", str(sweep(tmp_path).manifest), "1"]) == 0
    assert "line 1 is finished: 4 cells, 0 failed" in capsys.readouterr().out
    for wrong in (
        ["run", str(sweep(tmp_path).manifest), "2"],
        ["run", "none/manifest.jsonl", "0"],
        ["status", "other"],
    ):
        assert command(["sweep", *wrong]) == 2 and len(capsys.readouterr().err.strip().splitlines()) == 1


def test_one_failing_run_does_not_sink_the_others(tmp_path, capsys):
    submit("model.shape=unheard,tiny", "--shards", "2")
    codes = [command(["sweep", "run", str(sweep(tmp_path).manifest), str(index)]) for index in range(4)]
    assert codes == [2, 2, 0, 0]
    capsys.readouterr()
    assert command(["sweep", "status", "small"]) == 0
    said = capsys.readouterr().out
    assert "line 0: model.shape must be one of" in said and said.count("finished") == 2
    states = [sweep(tmp_path).progress(line).state for line in sweep(tmp_path).lines()]
    assert states == ["failed", "failed", "finished", "finished"]


def test_status_counts_cells(tmp_path, capsys, monkeypatch):
    submit("method=h2o,random", "--shards", "2", "limit=3")
    for index in range(3):
        assert command(["sweep", "run", str(sweep(tmp_path).manifest), str(index)]) == 0
    path = next(path for path in tmp_path.rglob("rows-1of2.jsonl") if '"random"' in path.read_text())
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[1]["error"] = "OutOfMemoryError: CUDA out of memory"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows[:3]))
    monkeypatch.setattr(manifest, "_alive", lambda kept: False)
    lines = sweep(tmp_path).lines()
    made = [sweep(tmp_path).progress(line, {3: "queued"}) for line in lines]
    assert [(one.state, one.done, one.failed, one.missing) for one in made] == [
        ("finished", 4, 0, 0),
        ("finished", 2, 0, 0),
        ("stopped", 2, 1, 1),
        ("queued", None, None, None),
    ]
    capsys.readouterr()
    assert command(["sweep", "status", "small"]) == 0
    said = capsys.readouterr().out
    total = next(line for line in said.splitlines() if "4 lines" in line)
    assert [int(word) for word in total.split() if word.isdigit()] == [4, 8, 0, 1, 1]
    running = sweep(tmp_path).progress(lines[2], {2: "running"})
    table = cli_sweep.table_of("small", lines[2:3], [running])
    assert [next(iter(column.cells)) for column in table.columns][3:] == ["running", "2", "1", "1", "0"]


def test_failed_cells_are_tried_again_on_request(fake, capsys, monkeypatch):
    methods = building.build_methods(compose.composed(["method=random"]).methods)

    def broken(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20 GiB")

    monkeypatch.setattr(
        identity, "of_method", lambda method: {"class": type(method).__name__}
    )  # one run, broken or not
    with monkeypatch.context() as patch:
        patch.setattr(type(methods["random"]), "plan", broken, raising=False)
        submit("method=[h2o,random]")
        assert command(["sweep", "run", str(sweep(fake).manifest), "0"]) == 1
    assert "no cell of random has a value" in capsys.readouterr().err
    line = sweep(fake).line(0)
    progress = sweep(fake).progress(line)
    assert (progress.state, progress.done, progress.failed) == ("finished", 4, 2)
    rows = load_table(fake / "results")
    errors = rows.loc[rows["error"].notna(), ["method", "error"]].drop_duplicates().to_numpy().tolist()
    assert errors == [["random", "OutOfMemoryError: CUDA out of memory. Tried to allocate 20 GiB"]]
    capsys.readouterr()
    assert submit("method=[h2o,random]") == 0 and "0 tasks submitted" in capsys.readouterr().out
    assert submit("method=[h2o,random]", "--retry-failed") == 0 and "1 tasks submitted" in capsys.readouterr().out
    assert "again=(--retry-failed)" in (sweep(fake).path / "array.sh").read_text()
    assert command(["sweep", "run", str(sweep(fake).manifest), "0", "--retry-failed"]) == 0
    progress = sweep(fake).progress(line)
    assert (progress.state, progress.done, progress.failed) == ("finished", 6, 0)


def tiny_run(tmp_path, *overrides):
    """A run of the tiny model without a sweep."""
    return runner.run(compose.composed([*TINY, f"results={tmp_path}", *overrides]))


def test_memory_that_ends_in_one_prefill_or_in_decoding_together(tmp_path, monkeypatch):
    prefill, answer = Engine.prefill, generation.Generate.answer

    def short_prefill(self, ids, methods=(), pruner=None, draws=None, **more):
        if pruner is not None:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return prefill(self, ids, methods, pruner, draws, **more)

    def short_answer(self, groups, rows):
        if len(rows) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return answer(self, groups, rows)

    whole = tiny_run(tmp_path / "whole", "method=[h2o,pvc]", "budgets=[0.9]")
    monkeypatch.setattr(Engine, "prefill", short_prefill)
    monkeypatch.setattr(generation.Generate, "answer", short_answer)
    short = tiny_run(tmp_path / "short", "method=[h2o,pvc]", "budgets=[0.9]")
    errors = short.rows.groupby("method")["error"].agg(lambda errors: errors.notna().sum()).to_dict()
    assert errors == {"full": 0, "h2o": 0, "pvc": 2}
    keys = ["sample", "method", "output", "score", "kv_bytes"]
    for method in ("full", "h2o"):
        pair = [
            result.rows.loc[result.rows["method"] == method, keys].sort_values("sample") for result in (whole, short)
        ]
        assert pair[0].to_numpy().tolist() == pair[1].to_numpy().tolist()


def test_a_task_that_did_nothing_before_its_limit_is_not_requeued(tmp_path, capsys, monkeypatch):
    submit("method=h2o")
    monkeypatch.setattr(runner, "run", lambda *_, **__: os.kill(os.getpid(), signal.SIGUSR1) or time.sleep(5))
    assert command(["sweep", "run", str(sweep(tmp_path).manifest), "0"]) == 1
    assert "give more --time" in capsys.readouterr().err
    progress = sweep(tmp_path).progress(sweep(tmp_path).line(0))
    assert progress.state == "failed" and "give more --time" in progress.reason


@pytest.mark.long
def test_the_array_script_stops_in_time_and_asks_for_another_turn(fake):
    assert submit("method=h2o", "limit=40", "task.repeats=40", "experiment=cut") == 0
    here = sweep(fake)
    environment = {**os.environ, "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "0", "OMP_NUM_THREADS": "1"}
    command = ["bash", str(here.path / "array.sh")]
    process = subprocess.Popen(command, env=environment, cwd="/", stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None and here.written(here.line(0)) == 0:
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 0 and "the time is up" in said, said
    assert (fake / "asked").read_text() == "requeue 17_0\n"
    stopped = manifest.Sweep(here.path).progress(here.line(0))
    assert stopped.state == "stopped" and 0 < stopped.done < 80 and stopped.done % 2 == 0
    (fake / "asked").unlink()
    again = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0, again.stderr
    assert not (fake / "asked").exists()
    ended = manifest.Sweep(here.path).progress(here.line(0))
    assert (ended.state, ended.done, ended.missing) == ("finished", 80, 0)
    plain = tiny_run(fake / "plain", "method=h2o", "limit=40", "task.repeats=40").rows
    joined = load_table(fake / "results" / "cut")
    drop = ["prefill_s", "decode_s", "folder", "experiment"]
    assert plain.drop(columns=drop).equals(joined.drop(columns=drop))


def test_names_of_sweeps_are_names(capsys):
    for name in ("a/b", "..", "a b"):
        assert command(["sweep", "submit", name, *TINY]) == 2 and "a sweep's name" in capsys.readouterr().err
    assert command(["sweep"]) == 2 and "pvcbench sweep --help" in capsys.readouterr().err


def multirun(tmp_path, *overrides):
    """A multirun of the tiny model in a process of its own, in a folder with a `methods` of its own."""
    (tmp_path / "methods").mkdir()
    environment = {**os.environ, "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "pvcbench",
        "--multirun",
        *TINY,
        "limit=1",
        "method=h2o",
        f"results={tmp_path}/out",
    ]
    return subprocess.run(
        [*command, *overrides], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_a_multirun_goes_on_after_a_failure(tmp_path):
    done = multirun(tmp_path, "model.shape=unheard,tiny")
    assert done.returncode == 2 and "model.shape must be one of" in done.stderr
    assert "Error executing job" not in done.stderr  # Hydra's words, which name nothing that the user wrote
    assert len(run_folders(tmp_path / "out")) == 1


@pytest.mark.slow
def test_submitits_launcher_runs_the_jobs(tmp_path):
    done = multirun(tmp_path, "hydra/launcher=submitit_local", "seed=0,1", "experiment=jobs")
    assert done.returncode == 0, done.stderr
    rows = load_table(tmp_path / "out")
    assert set(rows["experiment"]) == {"jobs"} and set(rows["seed"]) == {0, 1} and len(rows) == 4


def test_a_missing_launcher_names_its_extra():
    with pytest.raises(UserError, match="did you mean 'submitit_local'"):
        compose.composed(["hydra/launcher=submitit_loca"])
    text = "Could not find 'hydra/launcher/submitit_slurm'\n\nAvailable options in 'hydra/launcher':\n\tbasic"
    assert compose.explain(RuntimeError(text)).endswith("pip install 'hydra-submitit-launcher>=1.2' 'submitit>=1.5'")


def test_exit_codes_are_told():
    def stopped():
        raise KeyboardInterrupt

    noted = []
    assert exits.told(stopped, noted.append) == 130 and not noted  # stopped is not failed
    assert exits.told(lambda: 1 // 0, noted.append) == 1 and noted[0].startswith("ZeroDivisionError")
    assert slurm.ranges([7, 0, 1, 3, 2]) == "0-3,7"
