"""The W&B mirror: the curve is read back out of the offline file, and a broken W&B costs one line."""

import json
import os
import struct
import subprocess
import sys
import time
import zlib
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from pvcbench.plots import run_figures
from pvcbench.runs import wandb_mirror
from pvcbench.runs.rows import run_folders
from pvcbench.stats import summaries
from rows import needle_rows, table

HEADER, BLOCK, CHUNK = 7, 32768, 7
FULL, LAST = 1, 4


@pytest.fixture(scope="module")
def rows():
    return table(needle_rows(repeats=2, methods=("full", "pvc", "h2o", "random")))


@pytest.fixture(scope="module")
def summary(rows):
    return summaries.summarize(rows)


def settings(mode="offline", group=None):
    return SimpleNamespace(mode=mode, project="pvcbench", entity=None, group=group)


def track(summary, folder, mode="offline", pictures=(), group=None, rows=10):
    config = {"seed": 3, "task": {"name": "needle"}}
    named = wandb_mirror.Named("0123456789ab", "grid", "needle", "smollm2", ("h2o", "pvc"))
    return wandb_mirror.Live(settings(mode, group), named, config, folder).conclude(summary, pictures, rows)


def records(path):
    """The records of an offline file: LevelDB's log format with W&B's header."""
    from wandb.proto.wandb_internal_pb2 import Record

    raw = path.read_bytes()
    assert raw[:4] == b":W&B"
    place, parts = HEADER, []
    while place < len(raw):
        left = BLOCK - place % BLOCK
        if left < CHUNK:
            place += left
            continue
        checksum, length, kind = struct.unpack("<IHB", raw[place : place + CHUNK])
        data = raw[place + CHUNK : place + CHUNK + length]
        assert checksum == zlib.crc32(data, zlib.crc32(bytes([kind])))
        parts.append(data)
        if kind in (FULL, LAST):
            yield Record.FromString(b"".join(parts))
            parts = []
        place += CHUNK + length
    assert not parts


def finished(path):
    """All records of a run's file, once it has its last one: wandb writes the file a moment after the run ends."""
    for _ in range(2400):
        with suppress(AssertionError, struct.error):  # half written
            found = list(records(path))
            if found and found[-1].HasField("exit"):
                return found
        time.sleep(0.05)
    raise AssertionError(f"{path} has no end")


def items(message):
    """The keys and values of a history, config or summary message."""
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in message}


def test_every_point_of_every_curve_is_in_the_offline_file(rows, summary, tmp_path, capfd):
    pictures = run_figures.draw(rows, tmp_path / "figures")
    place = track(summary.sample(frac=1, random_state=0), tmp_path, pictures=pictures)
    assert capfd.readouterr() == ("", "")
    (path,) = tmp_path.glob("wandb/offline-run-*-0123456789ab/*.wandb")
    assert place == str(path.parent)
    found = finished(path)
    histories = [items(record.history.item) for record in found if record.HasField("history")]
    scored = summary[summary["score"].notna()]
    assert set(scored["method"]) == {"full", "pvc", "h2o", "random"}
    for method, cells in scored.groupby("method"):
        key = f"needle/{method}"
        mine = [row for row in histories if key in row]
        expected = cells.sort_values("kept_fraction")
        columns = {
            "cache/bytes_fraction": "kept_bytes",
            "cache/fraction": "kept_fraction",
            key: "score",
            f"{key}/low": "low",
            f"{key}/high": "high",
        }
        for name, column in columns.items():
            assert [row[name] for row in mine] == pytest.approx(list(expected[column]), abs=1e-12), (method, name)
    defined = [record.metric for record in found if record.HasField("metric")]
    metrics = {metric.name or metric.glob_name: metric for metric in defined}
    assert metrics["needle/*"].step_metric == "cache/bytes_fraction"
    logged = {key: value for row in histories for key, value in row.items()}
    assert logged["table/nrows"] == len(summary)
    for picture in ("curve", "needle_grid"):
        stored = path.parent / "files" / logged[f"figures/{picture}/path"]
        assert stored.read_bytes() == (tmp_path / "figures" / f"{picture}.png").read_bytes()


def test_config_and_numbers_are_mirrored(summary, tmp_path):
    place = track(summary, tmp_path)
    found = finished(next(tmp_path.glob("wandb/*/*.wandb")))
    run = next(record.run for record in found if record.HasField("run"))
    assert (run.run_id, run.display_name, run.project) == ("0123456789ab", "smollm2 h2o, pvc 0123456789ab", "pvcbench")
    assert list(run.tags) == ["needle", "smollm2", "h2o", "pvc"]
    assert items(run.config.update)["seed"] == 3
    known = {}
    for record in found:
        if record.HasField("summary"):
            known |= items(record.summary.update)
    cell = summary[(summary["method"] == "h2o") & (summary["budget"] == "0.25")].iloc[0]
    assert known["cells/h2o/0.25/score"] == pytest.approx(cell["score"])
    assert known["cells/h2o/0.25/difference"] == pytest.approx(cell["difference"])
    assert not [key for key in known if key.startswith("cells/pvc/0.05")]
    some = wandb_mirror.numbers(summary.assign(complete=summary["method"] != "h2o"))
    assert some["cells/h2o/0.25/incomplete/score"] == pytest.approx(cell["score"])
    assert "cells/h2o/0.25/score" not in some and "cells/full/1.0/score" in some
    assert place is not None and not (tmp_path / "wandb" / "latest-run").exists()


def test_a_broken_wandb_is_one_line_and_no_failure(summary, tmp_path, monkeypatch, capfd):
    import wandb

    def broken(**_):
        raise RuntimeError("the disk\nis full")

    monkeypatch.setattr(wandb, "init", broken)
    assert track(summary, tmp_path) is None
    out, err = capfd.readouterr()
    assert out == ""
    reason = "RuntimeError: the disk is full"
    safe = f"the results are safe in {tmp_path}, and the same command mirrors them again"
    assert err == f"pvcbench: wandb failed ({reason}); {safe}\n"


def test_online_without_a_key_asks_nothing_and_warns(summary, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert track(summary, tmp_path, mode="online") is None
    assert capfd.readouterr().err.count("wandb failed") == 1


@pytest.mark.parametrize("group", [None, "paper"])
def test_runs_of_a_sweep_share_a_group(summary, tmp_path, group):
    track(summary, tmp_path, group=group)
    found = finished(next(tmp_path.glob("wandb/*/*.wandb")))
    run = next(record.run for record in found if record.HasField("run"))
    assert (run.run_group, run.job_type) == (group or "grid", "needle")


def test_a_run_that_goes_on_continues_its_wandb_run(summary, tmp_path):
    """Offline each session leaves a folder of its own; all carry one id and ask to resume, so that sync joins them."""
    first = track(summary, tmp_path)
    time.sleep(1.1)  # the folders' names have seconds
    second = track(summary.assign(samples=99), tmp_path, rows=20)
    assert first != second
    for place in (first, second):
        (path,) = Path(place).glob("*.wandb")
        found = finished(path)
        run = next(record.run for record in found if record.HasField("run"))
        assert run.run_id == "0123456789ab" and run.resume and run.project == "pvcbench"
        histories = [items(record.history.item) for record in found if record.HasField("history")]
        counts = {row["cache/samples"] for row in histories if "cache/samples" in row}
        assert counts == ({99} if place == second else set(summary["samples"][summary["samples"] > 0]))
    planned = wandb_command("sync", "--dry-run", first, second)
    assert planned.returncode == 0 and planned.stdout.count("0123456789ab") + planned.stderr.count("0123456789ab") >= 2


def wandb_command(*arguments):
    """W&B's own command line."""
    command = [sys.executable, "-m", "wandb", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_what_was_mirrored_is_remembered(summary, tmp_path, monkeypatch, capfd):
    """A finished run is mirrored again only where its mirror is missing, older, or elsewhere."""
    assert not wandb_mirror.mirrored(settings(), tmp_path, 10) and wandb_mirror.mirrored(
        settings("disabled"), tmp_path, 10
    )
    track(summary, tmp_path)
    assert wandb_mirror.mirrored(settings(), tmp_path, 10)
    assert not wandb_mirror.mirrored(settings(), tmp_path, 11) and not wandb_mirror.mirrored(
        settings("online"), tmp_path, 10
    )
    import wandb

    monkeypatch.setattr(wandb, "init", lambda **_: 1 / 0)
    track(summary, tmp_path, rows=11)
    assert not wandb_mirror.mirrored(settings(), tmp_path, 11)
    assert capfd.readouterr().err.count("\n") == 1


def test_a_finished_run_is_mirrored_once(tmp_path, monkeypatch):
    """Through the runner: a mirror that failed is made by the same command, and not made a second time."""
    from pvcbench.config import compose as config
    from pvcbench.runs import runner

    calls, real = [], wandb_mirror._conclude

    def mirror(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise OSError("down")
        return real(*arguments)

    monkeypatch.setattr(wandb_mirror, "_conclude", mirror)
    command = ["model=random", "method=h2o", "threads=1", "task.lengths=[300]", "budgets=[0.5]", "limit=1"]
    results = [
        runner.run(config.composed([*command, f"results={tmp_path}", "experiment=grid"]), figures=False)
        for _ in range(3)
    ]
    assert [result.measured for result in results] == [2, 0, 0]
    assert len(calls) == 2 and [result.tracked is not None for result in results] == [False, True, False]
    path = Path(next(filter(None, (result.tracked for result in results))))
    run = next(record.run for record in finished(next(path.glob("*.wandb"))) if record.HasField("run"))
    assert (run.run_group, run.job_type, run.run_id) == ("grid", "needle", results[0].folder.name)


SMALL = ["model=random", "method=h2o", "threads=1", "task.lengths=[300]", "budgets=[0.5]"]


def small(folder, *more):
    from pvcbench.config import compose as config

    return config.composed([*SMALL, f"results={folder}", "experiment=grid", *more])


def state(found):
    """What a run's summary says of it last."""
    said = [items(record.summary.update) for record in found if record.HasField("summary")]
    return [update["state"] for update in said if "state" in update][-1]


def test_scores_so_far_are_logged_while_a_run_goes_on(tmp_path, monkeypatch):
    """Sample by sample, on the axis of samples done; a run that goes on goes on with its steps."""
    from pvcbench.runs import runner

    monkeypatch.setattr(wandb_mirror, "EVERY", 0.0)
    first = runner.run(small(tmp_path, "limit=2"), figures=False)
    time.sleep(1.1)  # the folders' names have seconds
    second = runner.run(small(tmp_path, "limit=5"), figures=False)
    steps = []
    for result, counts in ((first, [1, 2]), (second, [3, 4, 5])):
        (path,) = Path(result.tracked).glob("*.wandb")
        found = finished(path)
        histories = [
            (record.history.step.num, items(record.history.item)) for record in found if record.HasField("history")
        ]
        live = [(step, row) for step, row in histories if "progress/samples" in row]
        assert [row["progress/samples"] for _, row in live] == counts
        assert all({"running/full/1.0", "running/h2o/0.5"} <= set(row) for _, row in live)
        assert not any(key.startswith("needle/") for _, row in live for key in row)
        steps += [step for step, _ in histories]
        metrics = {
            record.metric.name or record.metric.glob_name: record.metric
            for record in found
            if record.HasField("metric")
        }
        assert metrics["running/*"].step_metric == "progress/samples"
        assert state(found) == "finished" and found[-1].exit.exit_code == 0
        rows = first.rows if result is first else second.rows
        means = rows.groupby(["method", "budget"])["score"].mean()
        assert live[-1][1]["running/h2o/0.5"] == pytest.approx(means["h2o", "0.5"])
    assert steps == sorted(set(steps))
    kept = Path(second.tracked) / "artifact"
    names = {"rows.jsonl", "config.yaml", "environment.json", "sessions.jsonl", "summary.csv"}
    assert {path.name for path in kept.iterdir()} == {f"{name}.copy" for name in names}
    assert (kept / "rows.jsonl.copy").read_bytes() == (second.folder / "rows.jsonl").read_bytes()
    assert run_folders(tmp_path) == [second.folder]
    assert any(record.HasField("artifact") and record.artifact.name.startswith("run-") for record in found)


@pytest.mark.parametrize(("error", "word", "code"), [(KeyboardInterrupt, "stopped", 130), (OSError, "failed", 1)])
def test_a_run_that_ends_early_is_marked_so(tmp_path, monkeypatch, error, word, code):
    from pvcbench.runs import folder, runner

    real, rows = folder.RunFolder.append, []

    def append(self, some):
        if rows:
            raise error
        rows.append(real(self, some))

    monkeypatch.setattr(folder.RunFolder, "append", append)
    with pytest.raises(error):
        runner.run(small(tmp_path, "limit=3"), figures=False)
    found = finished(next(tmp_path.glob("grid/*/wandb/offline-run-*/*.wandb")))
    assert state(found) == word and found[-1].exit.exit_code == code


@pytest.mark.parametrize("place", ["load_table", "wandb_mirror._conclude"])
@pytest.mark.parametrize(("error", "word", "code"), [(KeyboardInterrupt, "stopped", 130), (OSError, "failed", 1)])
def test_a_run_that_ends_while_it_is_reported_is_marked_so(tmp_path, monkeypatch, place, error, word, code):
    """While its tables are made, or while the mirror itself is finished, whose own failure is no failure of the run."""
    from pvcbench.runs import runner

    def fail(*_):
        raise error

    monkeypatch.setattr(f"pvcbench.runs.result.{place}", fail)
    own = error is OSError and place == "wandb_mirror._conclude"
    with nullcontext() if own else pytest.raises(error):
        runner.run(small(tmp_path, "limit=2"), figures=False)
    found = finished(next(tmp_path.glob("grid/*/wandb/offline-run-*/*.wandb")))
    assert state(found) == word and found[-1].exit.exit_code == code


def test_shards_have_runs_of_their_own_until_the_last_one_makes_the_whole(tmp_path):
    from pvcbench.runs import runner

    for shard in ("1/2", "2/2"):
        done = runner.run(small(tmp_path, "limit=2", f"shard={shard}"), figures=False)
        time.sleep(1.1)
    names = sorted(path.stem for path in done.folder.glob("wandb/offline-run-*/*.wandb"))
    assert names == sorted(f"run-{done.folder.name}{part}" for part in ("", "-1of2", "-2of2"))


BROKEN = """
import psutil, sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from rows import needle_rows, table
from pvcbench.runs import wandb_mirror as tracking
from pvcbench.stats import summaries as stats
from types import SimpleNamespace

def kill():
    service = psutil.Process().children(recursive=True)
    for process in service:
        process.kill()
    print("killed" if service else "nothing to kill", flush=True)
    time.sleep(0.2)

real = tracking.points
def points(*arguments):
    found = real(*arguments)
    if {when!r} == "before":
        kill()
    return found
def numbers(*arguments):
    if {when!r} == "after":
        kill()
    return {{}}
tracking.points, tracking.numbers = points, numbers
rows = table(needle_rows(repeats=1, methods=("full", "h2o")))
settings = SimpleNamespace(mode={mode!r}, project="pvcbench", entity=None, group=None)
named = tracking.Named("0123456789ab", "grid", "needle", "smollm2", ("h2o",))
live = tracking.Live(settings, named, {{}}, Path({folder!r}))
place = live.conclude(stats.summarize(rows), [], 10)
print("place", place, flush=True)
if {mode!r} == "offline":
    tracking.points, tracking.numbers = real, lambda *arguments: {{}}
    time.sleep(1.1)
    print("again", live.conclude(stats.summarize(rows), [], 10) is not None)
"""


def broken(folder, mode, when, **environment):
    """Mirrors in a process of its own, W&B's service killed while it does; returns how it ended and its seconds."""
    code = BROKEN.format(tests=str(Path(__file__).parents[1] / "helpers"), folder=str(folder), mode=mode, when=when)
    own = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    known = {**own, "PYTHONPATH": str(Path(__file__).parents[2]), "HOME": str(folder), **environment}
    started = time.monotonic()
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=known)
    return done, time.monotonic() - started


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.sampled(1)
def test_a_killed_wandb_is_one_line_and_no_failure(tmp_path, when):
    """Its service process dies before the curve is logged, or after it; the next run of the process has a mirror."""
    done, seconds = broken(tmp_path, "offline", when)
    assert done.returncode == 0 and done.stdout.splitlines() == ["killed", "place None", "again True"], done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("pvcbench: wandb failed (") and f"the results are safe in {tmp_path}" in line
    assert seconds < 110  # less than the wait for W&B's end, imports included


@pytest.mark.slow
def test_an_unreachable_server_is_one_line_and_a_bounded_wait(tmp_path):
    """With a key, so that it is the server that is missed."""
    known = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}
    done, seconds = broken(tmp_path, "online", "never", **known)
    assert done.returncode == 0 and done.stdout.splitlines() == ["place None"]
    (line,) = done.stderr.splitlines()
    assert line.startswith("pvcbench: wandb failed (") and "mirrors them again" in line
    assert seconds < 85  # half a minute for the answer and the imports; W&B by itself waits for 90 seconds


def test_disabled_writes_nothing(summary, tmp_path):
    assert track(summary, tmp_path, mode="disabled") is None
    assert list(tmp_path.iterdir()) == []
