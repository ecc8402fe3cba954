"""The store: rows survive a kill, a resumed run equals an uninterrupted one, a finished one stays untouched."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from forked import wait_for
from pvcbench.errors import UserError
from pvcbench.runs.folder import RunFolder
from pvcbench.runs.rows import load_table, newest, read_rows
from pvcbench.runs.run_id import run_id

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "pvcbench", "model=random", "method=[h2o,pvc_kv]", "task.lengths=[700]"]
COMMAND += ["budgets=[0.2,0.6]", "threads=1", "wandb.mode=disabled", "experiment=kill"]
TIMES = {"prefill_s", "decode_s"}


def run(results, limit, **options):
    """The command line in a process of its own."""
    return subprocess.run(
        [*COMMAND, f"results={results}", f"limit={limit}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **options,
    )


def rows_file(results):
    """The rows of the only run below a folder, or None."""
    return next(iter(Path(results).rglob("rows.jsonl")), None)


def sample_written(results):
    """Whether the first sample's rows are there."""
    path = rows_file(results)
    return path is not None and path.read_bytes().count(b"\n") >= 5


def without_times(path):
    """Rows in a fixed order, apart from what depends on the clock."""
    rows = [{name: value for name, value in row.items() if name not in TIMES} for row in read_rows(path)]
    return sorted(rows, key=lambda row: (row["sample"], row["method"], row["budget"]))


@pytest.mark.long
def test_kill_and_resume_equals_an_uninterrupted_run(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(
        [*COMMAND, f"results={killed}", "limit=12"], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: process.poll() is not None or sample_written(killed))
    assert process.poll() is None, "the run ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    measured = read_rows(rows_file(killed))
    assert 0 < len(measured) < 60
    with rows_file(killed).open("ab") as file:
        file.write(b'{"sample": "torn", "meth')  # what a kill in the middle of a write leaves
    resumed = run(killed, 12)
    assert resumed.returncode == 0, resumed.stderr
    assert run(whole, 12).returncode == 0
    assert without_times(rows_file(killed)) == without_times(rows_file(whole))
    assert len(read_rows(rows_file(whole))) == 60  # 12 samples of 2 methods at 2 budgets, and the reference
    assert read_rows(rows_file(killed))[: len(measured)] == measured

    before = rows_file(killed).read_bytes(), rows_file(killed).stat().st_mtime_ns
    again = run(killed, 12)
    assert again.returncode == 0 and "finished before" in again.stdout
    assert (rows_file(killed).read_bytes(), rows_file(killed).stat().st_mtime_ns) == before

    assert run(killed, 14).returncode == 0  # a larger limit extends the same run
    assert len(read_rows(rows_file(killed))) == 70
    assert len(list(killed.rglob("rows.jsonl"))) == 1


def opened(tmp_path, **identity):
    folder = RunFolder(tmp_path, "exp", {"model": {"name": "m"}, "seed": 0, **identity})
    return folder, folder.open({"a": 1}, {"b": 2})


def row(sample, **more):
    known = {"task": "made", "sample": sample, "method": "h2o", "budget": "0.5", "reference": False, "score": 1.0}
    return {**known, "metrics": {"accuracy": 1.0}, "error": None, **more}


def test_the_id_depends_on_every_part_of_the_identity():
    base = {"a": 1, "b": {"c": [1, 2]}}
    others = [{"a": 2, "b": {"c": [1, 2]}}, {"a": 1, "b": {"c": [2, 1]}}, {"a": 1, "b": {"c": [1, 2]}, "d": None}]
    assert run_id(base) == run_id({"b": {"c": [1, 2]}, "a": 1})
    assert len({run_id(one) for one in [base, *others]}) == 4


def test_torn_last_line_is_dropped_and_a_broken_one_is_named(tmp_path):
    folder, rows = opened(tmp_path)
    assert rows == []
    folder.append([row("0"), row("1")])
    folder.close()
    with folder.rows_path.open("ab") as file:
        file.write(b'{"sample": "2", ')
    folder, rows = opened(tmp_path)
    assert [one["sample"] for one in rows] == ["0", "1"] and folder.rows_path.read_bytes().endswith(b"}\n")
    folder.close()
    folder.rows_path.write_text('{"sample": "0"}\n' + json.dumps(row("1")) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="line 1 is not a row"):
        opened(tmp_path)


def test_a_retry_replaces_its_error_row(tmp_path):
    rows = newest([row("0", error="OutOfMemoryError"), row("1"), row("0")])
    assert len(rows) == 2 and all(one["error"] is None for one in rows)


def test_two_writers_are_refused(tmp_path):
    folder, _ = opened(tmp_path)
    with pytest.raises(UserError, match="another process"):
        opened(tmp_path)
    folder.close()
    opened(tmp_path)[0].close()


def test_a_full_disk_loses_nothing_measured(tmp_path, monkeypatch):
    folder, _ = opened(tmp_path)
    folder.append([row("0")])
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(RuntimeError, match=r"No space left.*continues"):
        folder.append([row("1")])
    monkeypatch.setattr(os, "fsync", real)
    assert [one["sample"] for one in read_rows(folder.rows_path)] == ["0"]


def test_load_joins_runs_with_their_settings(tmp_path):
    for seed in (0, 1):
        folder, _ = opened(tmp_path, seed=seed)
        folder.append([row("0"), row("1")])
        folder.close()
    table = load_table(tmp_path)
    assert len(table) == 4 and set(table["seed"]) == {0, 1} and set(table["experiment"]) == {"exp"}
    (folder.path / "config.yaml").unlink()
    with pytest.raises(UserError, match="no readable config"):
        load_table(tmp_path)
    with pytest.raises(UserError, match="no results"):
        load_table(tmp_path / "nothing")
