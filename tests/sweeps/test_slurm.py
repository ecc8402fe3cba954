"""A sweep on a real SLURM of one node: a killed task and one whose time runs out lose nothing.

scripts/slurm/one_node.sh up starts one; without it these tests are skipped.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from pvcbench.config import compose
from pvcbench.runs import runner
from pvcbench.runs.rows import load_table
from pvcbench.sweeps import slurm
from pvcbench.sweeps.manifest import Sweep, combinations

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "scripts" / "slurm" / "sweep.py")
TINY = ["model=random", "threads=1", "wandb.mode=disabled", "budgets=[0.25,0.5]"]
GRID = [*TINY, "task=needle,perplexity", "method=h2o,random", "seed=0,1,2", "limit=6", "experiment=grid"]
SLOW = [*TINY, "task=needle", "task.lengths=[2000]", "task.repeats=400", "method=[h2o,random]", "experiment=slow"]
TIMES = ["prefill_s", "decode_s", "folder"]


def idle():
    """Whether there is a SLURM with a node that takes jobs."""
    if shutil.which("sinfo") is None:
        return False
    states = subprocess.run(["sinfo", "--noheader", "--format=%T"], capture_output=True, text=True, check=False).stdout
    return bool(re.search("idle|mixed", states))


pytestmark = [pytest.mark.long, pytest.mark.skipif(not idle(), reason="no SLURM with an idle node")]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder that all processes of this test work in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield tmp_path
    for path in tmp_path.rglob("jobs.jsonl"):
        for line in path.read_text().splitlines():
            subprocess.run(["scancel", json.loads(line)["job"]], check=False)


def told(*command):
    """What a command says."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def until(true, seconds, logs):
    """Waits until something is true; the end of every log if it never is."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = true()
        if found:
            return found
        time.sleep(0.1)
    ends = "\n".join(f"{path.name}: {path.read_text()[-800:]}" for path in sorted(logs.glob("*.log")))
    raise AssertionError(f"not true after {seconds} s; squeue: {told('squeue', '--array')}\n{ends}")


def submit(name, *arguments):
    """Submits a sweep for CPUs, with little memory for each task, and returns it and its job's id."""
    options = ["--gpus", "0", "--sbatch", "--mem=1200M --cpus-per-task=1"]
    told(sys.executable, SCRIPT, "submit", name, *arguments, *options)
    sweep = Sweep(Path("results") / "sweeps" / name)
    return sweep, json.loads((sweep.path / "jobs.jsonl").read_text().splitlines()[-1])["job"]


def states(sweep):
    """The state of every line."""
    queue = slurm.queue(sweep)
    fresh = Sweep(sweep.path)
    return [fresh.progress(line, queue).state for line in fresh.lines()]


def finished(sweep):
    """Whether every line is; a line that has failed will never be."""
    found = set(states(sweep))
    assert "failed" not in found, [path.read_text() for path in (sweep.path / "lines").glob("*.error")]
    return found == {"finished"}


def restarts(task):
    """How often SLURM has started a task again."""
    return int(re.search(r"Restarts=(\d+)", told("scontrol", "show", "job", task))[1])


def plain(*overrides):
    """The run of one line without SLURM."""
    return runner.run(compose.composed([*overrides, "results=plain"]), figures=False)


def begun(sweep):
    """The running tasks that have measured something."""
    running = [line for line, state in zip(sweep.lines(), states(sweep), strict=True) if state == "running"]
    return [line.index for line in running if sweep.written(line)]


def killed(sweep, job):
    """Kills a task that has measured something but not all; returns its index."""
    for _ in range(5):
        found = until(partial(begun, sweep), 120, sweep.logs)
        told("scancel", f"{job}_{found[0]}")
        until(lambda found=found: states(sweep)[found[0]] != "running", 60, sweep.logs)
        if states(sweep)[found[0]] == "stopped":
            return found[0]
    raise AssertionError("every task ended before it was killed")


def same_rows(joined, expected):
    """Whether two tables are equal apart from times and places."""
    order = ["task", "seed", "method", "budget", "sample"]
    timeless = [table.drop(columns=TIMES) for table in (joined, expected)]
    # tasks beside each other take a row or measure it: where it was measured is chance, and the column may be missing
    timeless = [table.drop(columns="measured_in", errors="ignore") for table in timeless]
    pair = [table.sort_values([*order, "run"]).reset_index(drop=True) for table in timeless]
    pd.testing.assert_frame_equal(*pair, check_like=True)


def test_a_sweep_loses_nothing(folder):
    plain(*SLOW, "limit=2")
    started = time.monotonic()
    plain(*SLOW, "limit=12")
    samples = min(2000, max(50, int(10 * 90 / (time.monotonic() - started))))  # at least a minute on any machine
    slow, slow_job = submit("slow", *SLOW, f"limit={samples}", "--time", "30", "--warning", "60")
    grid, grid_job = submit("grid", *GRID, "--time", "10")
    assert len(grid.lines()) == 12

    until(lambda: slow.written(slow.line(0)), 120, slow.logs)
    told("scontrol", "update", f"JobId={slow_job}_0", "TimeLimit=2")
    victim = killed(grid, grid_job)
    told("scontrol", "requeue", f"{grid_job}_{victim}")

    for overrides in combinations(GRID):
        plain(*overrides)
    log = slow.logs / f"{slow_job}_0.log"
    until(lambda: "the time is up" in log.read_text(), 180, slow.logs)
    longer = ["scontrol", "update", f"JobId={slow_job}_0", "TimeLimit=30"]
    subprocess.run(longer, check=False)  # operators only may do so; without it there are more turns
    plain(*SLOW, f"limit={samples}")
    for sweep in (grid, slow):
        until(partial(finished, sweep), 400, sweep.logs)
    assert f"of {samples} samples" in log.read_text().partition("the time is up")[2]  # another turn, in the same log
    assert restarts(f"{slow_job}_0") >= 1 and restarts(f"{grid_job}_{victim}") == 1

    joined = load_table("results")
    assert joined["run"].nunique() == 13 and joined["error"].isna().all()
    same_rows(joined, load_table("plain"))
    assert told(sys.executable, SCRIPT, "status", "grid").count("finished") == 12
    assert "0 tasks submitted" in told(sys.executable, SCRIPT, "submit", "grid", *GRID)


def test_submitits_launcher_on_slurm(folder):
    command = [sys.executable, "-m", "pvcbench", "--multirun", "hydra/launcher=submitit_slurm", *TINY]
    command += ["hydra.launcher.timeout_min=5", "hydra.launcher.mem_gb=1", "hydra.launcher.cpus_per_task=1"]
    command += ["task.lengths=[600]", "method=h2o", "seed=0,1", "limit=1", "results=out"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert set(load_table("out")["seed"]) == {0, 1}
