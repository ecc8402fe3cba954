"""Shards: several writers of one run never mix, its rows are read as one, and they are those of a plain run."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pandas as pd
import pytest

from pvcbench.cli import run_table
from pvcbench.cli.main import main as command
from pvcbench.config import building, compose
from pvcbench.config.shards import Shard
from pvcbench.errors import UserError
from pvcbench.runs import identity, locks, runner
from pvcbench.runs.folder import RunFolder
from pvcbench.runs.rows import load_table, read_rows, row_files, run_folders

ROOT = Path(__file__).parents[2]
TINY = ["model=random", "threads=1", "wandb.mode=disabled", "task.lengths=[600]", "task.max_new_tokens=4"]
TINY += ["method=[h2o,random]", "budgets=[0.5]", "limit=5"]
TIMES = ("prefill_s", "decode_s")


@pytest.fixture(autouse=True)
def drawn(monkeypatch):
    """Figures are tested elsewhere; the folders that were drawn in."""
    folders = []
    monkeypatch.setattr("pvcbench.runs.result.draw", lambda rows, folder: folders.append(folder) or [])
    return folders


def run(results, *overrides, **objects):
    """A run of the tiny model."""
    return runner.run(compose.composed([*TINY, f"results={results}", *overrides]), **objects)


def timeless(rows):
    """Rows in their order, apart from what depends on the clock."""
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def opened(tmp_path, shard=None):
    folder = RunFolder(tmp_path, "exp", {"model": {"name": "m"}, "seed": 0}, Shard.parse(shard))
    return folder, folder.open({"a": 1}, {"b": 2})


def row(sample, **more):
    known = {"task": "needle", "sample": sample, "method": "h2o", "budget": "0.5", "reference": False, "error": None}
    return known | {"score": None, "metrics": {}} | more


def test_a_shard_is_every_nth_sample():
    assert Shard.parse(None) is None and Shard.parse("2/4") == Shard(2, 4)
    owners = [[index for index in range(10) if Shard(number, 4).owns(index)] for number in range(1, 5)]
    assert owners == [[0, 4, 8], [1, 5, 9], [2, 6], [3, 7]]
    for wrong in ("0/4", "5/4", "1/0", "2", "a/b", "-1/2", "1/2/3", ""):
        with pytest.raises(UserError, match="such as 1/4"):
            Shard.parse(wrong)


def test_the_command_line_takes_a_shard():
    assert compose.composed(["shard=2/4"]).shard == "2/4" and compose.composed([]).shard is None


def test_shards_joined_are_the_plain_run(tmp_path, drawn, capsys):
    plain = run(tmp_path / "plain")
    drawn.clear()
    first = run(tmp_path / "cut", "shard=2/3")
    assert first.measured == 2 * 3 and first.summary.empty and not drawn and first.tracked is None
    run_table.show(first)
    said = " ".join(capsys.readouterr().out.split())
    assert "Shard 2/3 is finished: 2 samples, 6 rows" in said and "9 cells of the run have no row yet" in said
    run(tmp_path / "cut", "shard=3/3")
    last = run(tmp_path / "cut", "shard=1/3")  # nothing is missing after this one: it reports
    assert last.note is None and drawn == [last.folder / "figures"] and (last.folder / "summary.csv").is_file()
    assert last.folder.name == plain.folder.name
    names = sorted(path.name for path in last.folder.iterdir() if path.name.startswith("rows"))
    assert names == ["rows-1of3.jsonl", "rows-2of3.jsonl", "rows-3of3.jsonl"]
    assert timeless(read_rows(last.folder)) == timeless(read_rows(plain.folder / "rows.jsonl"))
    times = ["prefill_s"]
    pd.testing.assert_frame_equal(plain.summary.drop(columns=times), last.summary.drop(columns=times))
    assert "shard:" not in (last.folder / "config.yaml").read_text()

    before = {path.name: path.read_bytes() for path in last.folder.glob("rows*")}
    again = run(tmp_path / "cut")
    assert again.measured == 0 and {path.name: path.read_bytes() for path in last.folder.glob("rows*")} == before
    run_table.show(again)
    assert str(last.folder / "rows*.jsonl") in capsys.readouterr().out
    assert run(tmp_path / "cut", "limit=6").measured == 3  # a larger limit extends it
    assert len(read_rows(last.folder / "rows.jsonl")) == 3 and len(load_table(tmp_path / "cut")) == 18


def test_a_plain_run_goes_on_where_shards_and_it_left_off(tmp_path):
    whole = run(tmp_path, "shard=1/2")
    assert run(tmp_path).measured == 6  # samples 1 and 3
    assert not (whole.folder / "rows-2of2.jsonl").exists()
    assert len(read_rows(whole.folder / "rows.jsonl")) == 6
    assert run(tmp_path, "shard=2/2").measured == 0  # it sees what the others have


@pytest.mark.long
def test_shards_at_the_same_time(tmp_path):
    command = [sys.executable, "-m", "pvcbench", *TINY, "limit=8", f"results={tmp_path / 'cut'}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen([*command, f"shard={part}/2"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        for part in (1, 2)
    ]
    said = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    (folder,) = run_folders(tmp_path / "cut")
    assert (folder / "summary.csv").is_file()  # whoever was last has reported
    assert not list(folder.glob("*.tmp")) and not list(folder.glob(".*.tmp"))
    plain = run(tmp_path / "plain", "limit=8")
    assert timeless(read_rows(folder)) == timeless(read_rows(plain.folder))


def test_a_shard_that_begins_while_another_looks_whether_it_was_the_last_waits(tmp_path):
    began, end = threading.Event(), threading.Event()

    def look():
        with locks.alone(tmp_path) as free:
            assert free
            began.set()
            end.wait(30)

    looking = threading.Thread(target=look)
    looking.start()
    assert began.wait(30)
    threading.Timer(2, end.set).start()  # longer than all tries without the mark
    held = locks.take(tmp_path, Shard(1, 2))  # a refusal before
    assert end.is_set()
    looking.join()
    with locks.alone(tmp_path) as free:
        assert not free  # the shard writes now
    while held:
        held.pop().close()


def test_a_shard_does_not_wait_for_a_plain_run(tmp_path):
    held = locks.take(tmp_path, None)
    with pytest.raises(UserError, match="another process is writing"):
        locks.take(tmp_path, Shard(1, 2))
    held.pop().close()


def test_a_shard_without_samples_ends_well(tmp_path):
    result = run(tmp_path, "shard=3/3", "limit=1")
    assert result.measured == 0 and "0 samples" in result.note and "3 cells" in result.note


def test_writers_of_the_same_samples_are_refused(tmp_path):
    plain, _ = opened(tmp_path)
    with pytest.raises(UserError, match="another process"):
        opened(tmp_path, "1/2")
    plain.close()
    first, _ = opened(tmp_path, "1/2")
    second, _ = opened(tmp_path, "2/2")
    for shard in (None, "1/2", "2/2"):
        with pytest.raises(UserError, match="another process"):
            opened(tmp_path, shard)
    with pytest.raises(UserError, match=r"as many shards as it does .*lock-1of2"):
        opened(tmp_path, "3/4")
    with locks.alone(first.path) as alone:
        assert not alone
    first.close()
    opened(tmp_path, "1/2")[0].close()
    second.close()
    opened(tmp_path, "3/4")[0].close()
    opened(tmp_path)[0].close()
    with locks.alone(first.path) as alone, pytest.raises(UserError, match="another process"):
        assert alone
        opened(tmp_path)  # a shard would wait


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", no_locks)
    with pytest.raises(UserError, match="file system without locks"):
        opened(tmp_path)


def test_what_stands_in_two_files_is_refused(tmp_path):
    for shard, sample in (("1/2", "0"), ("2/2", "1")):
        folder, _ = opened(tmp_path, shard)
        folder.append([row(sample, score=1.0)])
        folder.close()
    assert [one["sample"] for one in read_rows(folder.path)] == ["0", "1"]
    plain = folder.path / "rows.jsonl"
    plain.write_text(json.dumps(row("1", score=0.5)) + "\n")
    expected = r"rows\.jsonl and .*rows-2of2\.jsonl both have a row of sample 1, h2o at 0\.5: delete"
    for read in (lambda: load_table(tmp_path), lambda: read_rows(folder.path), lambda: opened(tmp_path)):
        with pytest.raises(UserError, match=expected):
            read()
    plain.unlink()
    opened(tmp_path)[0].close()  # and no lock was left behind


def test_other_files_are_no_rows(tmp_path):
    folder, _ = opened(tmp_path)
    folder.append([row("0")])
    folder.close()
    for name in ("rows-copy.jsonl", "rows.jsonl.bak", "rows-1of2.jsonl.bak", "rows2.jsonl"):
        (folder.path / name).write_text("no row\n")
    assert row_files(folder.path) == [folder.path / "rows.jsonl"] and len(read_rows(folder.path)) == 1


def test_a_line_that_another_shard_is_writing_is_left_alone(tmp_path):
    first, _ = opened(tmp_path, "1/2")
    with first.rows_path.open("ab") as file:
        file.write(json.dumps(row("0")).encode() + b'\n{"sample": "2", ')
    torn = first.rows_path.read_bytes()
    second, rows = opened(tmp_path, "2/2")
    assert [one["sample"] for one in rows] == ["0"] and first.rows_path.read_bytes() == torn
    first.close()
    second.close()
    plain, _ = opened(tmp_path)  # alone, it may cut off what was torn
    assert first.rows_path.read_bytes() == torn[: torn.index(b"\n") + 1]
    plain.close()


def test_retries_stay_in_their_file(tmp_path, monkeypatch):
    methods = building.build_methods(compose.composed(["method=[h2o,random]"]).methods)

    real = type(methods["random"]).plan

    def broken(method, scores, budget, shape):
        if shape.tokens > 200:  # longer than the prompt of its trial
            raise RuntimeError("no plan today")
        return real(method, scores, budget, shape)

    monkeypatch.setattr(
        identity, "of_method", lambda method: {"class": type(method).__name__}
    )  # one run, broken or not
    with monkeypatch.context() as patch:
        patch.setattr(type(methods["random"]), "plan", broken, raising=False)
        for shard in ("1/2", "2/2"):
            folder = run(tmp_path, f"shard={shard}", "limit=2").folder
    failed = lambda: [one["sample"] for one in read_rows(folder) if one["error"] is not None]  # noqa: E731
    assert failed() == ["0-0", "0-1"]
    assert run(tmp_path, "shard=1/2", "limit=2", "retry_failed=true").measured == 1 and failed() == ["0-1"]
    before = len((folder / "rows-2of2.jsonl").read_text().splitlines())
    assert run(tmp_path, "limit=2", "retry_failed=true").measured == 1 and failed() == []
    assert len((folder / "rows-2of2.jsonl").read_text().splitlines()) == before + 1
    assert not (folder / "rows.jsonl").exists()


def test_shards_are_scored_again_in_their_files(tmp_path, capsys):
    for shard in ("1/2", "2/2"):
        folder = run(tmp_path, f"shard={shard}", "limit=2").folder
    path = folder / "rows-2of2.jsonl"
    rows = read_rows(path)
    rows[0] |= {"output": f"It is {rows[0]['answers'][0]}."}
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    other = (folder / "rows-1of2.jsonl").read_bytes()
    assert command(["rescore", str(tmp_path), "--write"]) == 0
    assert "6 rows, 1 changed; full 1.0: 0.0000 -> 0.5000" in capsys.readouterr().out
    assert read_rows(path)[0]["score"] == 1.0 and (folder / "rows-1of2.jsonl").read_bytes() == other
    assert (folder / "rows-2of2.jsonl.bak").is_file() and not (folder / "rows-1of2.jsonl.bak").exists()
    with (folder / ".lock").open("a") as lock:
        locks.fcntl.flock(lock, locks.fcntl.LOCK_SH)  # as a live shard holds it
        assert command(["rescore", str(tmp_path), "--write"]) == 2
