"""environment.json: complete by itself, and different where something that can change a number is."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from pvcbench.config import compose
from pvcbench.errors import UserError
from pvcbench.models import random_weights
from pvcbench.models.checksum import weights_checksum
from pvcbench.runs import environment, runner, sessions

ROOT = Path(__file__).parents[2]
TINY = ["model=random", "method=h2o", "threads=1", "wandb.mode=disabled", "task.lengths=[300]", "budgets=[0.5]"]


@pytest.fixture
def run(tmp_path):
    asked = [*TINY, f"results={tmp_path}", "limit=1"]
    return lambda *more: runner.run(compose.composed([*asked, *more]), figures=False).folder


def test_a_run_tells_all_that_can_change_a_number(run, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    folder = run("seed=3")
    found = json.loads((folder / "environment.json").read_text())
    identity = yaml.safe_load((folder / "config.yaml").read_text())["identity"]
    assert found["seeds"]["run"] == 3 and found["threads"] == 1 and found["gpus"] == []
    assert (
        found["data"] == {"task": "needle", "sha256": identity["task"]["data"]} and len(identity["task"]["data"]) == 64
    )
    assert {name: found["model"][name] for name in identity["model"]} == identity["model"]
    assert len(found["model"]["loaded_sha256"]) == 64 and len(found["source"]) == 64
    assert found["packages"]["torch"] == torch.__version__ and found["packages"]["omegaconf"]
    assert set(found["packages"]) == set(environment.PACKAGES)
    assert found["variables"]["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    flags = found["determinism"]
    assert flags["deterministic_algorithms"] is False and flags["matmul_precision"] == "highest"
    assert {"cudnn_benchmark", "cudnn_tf32", "sdpa", "interop_threads"} <= set(flags)
    assert found["cpu_capability"] and found["processor"]


def test_flags_are_those_of_the_moment():
    before = environment.determinism()
    torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("high")
    try:
        now = environment.determinism()
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_float32_matmul_precision("highest")
    changed = {name for name in before if before[name] != now[name]}
    assert {"deterministic_algorithms", "matmul_precision"} <= changed


def test_the_first_session_stays_and_later_ones_are_added(run, monkeypatch):
    folder = run()
    first = (folder / "environment.json").read_bytes()
    monkeypatch.setattr(environment, "processor", lambda: "a faster one")
    assert run("limit=1") == folder and len(sessions.read(folder)) == 2  # finished: no session measured anything
    assert run("limit=3") == folder
    assert (folder / "environment.json").read_bytes() == first
    noted = sessions.read(folder)
    assert [session["before"] for session in noted] == [0, 0, 2]
    of_row = [sessions.session_of(noted, "rows.jsonl", line)["environment"]["processor"] for line in range(6)]
    assert "a faster one" not in of_row[:2] and of_row[2:] == ["a faster one"] * 4
    (line,) = sessions.differences(noted[0]["environment"], noted[-1]["environment"])
    assert line.startswith("processor: ") and line.endswith(" then, a faster one now")


def test_old_files_are_read(tmp_path):
    """Every committed run tells its sessions, also those from before sessions.jsonl."""
    folders = sorted(path.parent for path in (ROOT / "results").rglob("environment.json"))
    assert len(folders) > 5
    today = environment.describe()
    for folder in folders:
        for session in sessions.read(folder):
            lines = sessions.differences(session["environment"], today)
            assert all(" then, " in line for line in lines)
    with pytest.raises(UserError, match="no readable environment"):
        sessions.read(tmp_path)


def test_the_checksum_knows_other_weights():
    def checksum(seed, dtype="float32"):
        return weights_checksum(random_weights.random("tiny", "cpu", dtype, seed=seed).model)

    assert checksum(0) == checksum(0)
    assert len({checksum(0), checksum(1), checksum(0, "bfloat16")}) == 3
    with torch.device("meta"):
        absent = torch.nn.Linear(2, 2)
    assert weights_checksum(absent) is None
    one, other = torch.nn.Linear(3, 1), torch.nn.Linear(3, 1)
    other.load_state_dict(one.state_dict())
    assert weights_checksum(one) == environment.weights_checksum(other)
    with torch.no_grad():
        other.bias += 1e-6
    assert weights_checksum(one) != environment.weights_checksum(other)


def test_the_source_is_told_apart_from_an_edited_one(tmp_path):
    """A copy of the code gives the same hash, an edited copy another one."""
    hashes = []
    for name, edit in (("same", ""), ("edited", "# edited\n")):
        for part in ("pvcbench", "methods"):
            shutil.copytree(ROOT / part, tmp_path / name / part, ignore=shutil.ignore_patterns("__pycache__"))
        with (tmp_path / name / "methods" / "h2o.py").open("a") as file:
            file.write(edit)
        hashes.append(environment.source(tmp_path / name / "pvcbench"))
    assert hashes[0] == environment.source() and hashes[1] != hashes[0]
