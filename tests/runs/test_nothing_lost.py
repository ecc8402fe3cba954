"""Nothing lost: kills, full and read-only disks, torn and foreign lines, two writers, Ctrl-C and SIGTERM.

Everything runs the real command line on the tiny random model, in processes of its own.
"""

import contextlib
import json
import math
import os
import random
import re
import select
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from forked import ROOT, Server, wait_for
from pvcbench.runs import sessions
from pvcbench.runs import signals as stopping
from pvcbench.runs.rows import KEY, read_rows

SETTINGS = ["model=random", "method=[h2o,streaming_llm]", "task.lengths=[300]", "budgets=[0.2,0.6]"]
SETTINGS += ["task.repeats=4", "task.max_new_tokens=6", "threads=1", "wandb.mode=disabled", "experiment=lost"]
SAMPLES, CELLS = 20, 5
UNDRAWN = "figures=false"
KILLS = 20


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Forks from one process that has imported everything; its path is that of the tests."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), str(ROOT / "tests" / "helpers"), *([before] if before else [])]
    )
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    yield Server(tmp_path_factory.mktemp("said"))
    del os.environ["OPENBLAS_NUM_THREADS"]
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


def one(results, *more):
    """The command line of a run."""
    return [*SETTINGS, f"results={results}", *more]


def rows_of(results):
    """The rows of all runs below a folder by their key, without times; none of them twice."""
    found = {}
    for path in sorted(Path(results).rglob("rows.jsonl")):
        for row in read_rows(path):
            key = (path.parent.name, *(row[name] for name in KEY))
            assert key not in found, f"{key} was measured twice"
            found[key] = {name: value for name, value in row.items() if name not in ("prefill_s", "decode_s")}
    return found


def rows_file(results):
    return next(iter(Path(results).rglob("rows.jsonl")), None)


def written(results):
    """How many rows all runs below a folder have."""
    return sum(path.read_bytes().count(b"\n") for path in Path(results).rglob("rows.jsonl"))


def has_rows(results, count=1):
    return written(results) >= count


@pytest.fixture(scope="module")
def uninterrupted(server, tmp_path_factory):
    """The rows of an uninterrupted sweep, and the processor time of one of its runs."""
    results, seconds = tmp_path_factory.mktemp("whole"), []
    for seed in (0, 1):
        command = server.start(*one(results, f"seed={seed}", UNDRAWN))
        seconds.append(command.work_for(math.inf))
        assert command.end() == 0, command.text()
    rows = rows_of(results)
    assert len(rows) == 2 * SAMPLES * CELLS
    return rows, min(seconds)


@pytest.fixture(scope="module")
def whole(uninterrupted):
    return uninterrupted[0]


def part(whole, run, samples=SAMPLES):
    """The rows of one run's first samples."""
    names = {f"0-{number}" for number in range(samples)}
    return {key: row for key, row in whole.items() if key[0] == run and key[1] in names}


# ------------------------------------------------------------------------------------------------ kills


@pytest.mark.long
def test_twenty_kills_lose_nothing(server, uninterrupted, tmp_path):
    """A sweep of two runs, killed at 20 random moments and resumed each time, has an uninterrupted one's rows.

    Half of the kills come while samples are measured, wherever a run stands then; the others after a share of the
    processor time of a whole run, so that its beginning is hit too. Neither depends on how fast the machine is.
    """
    (whole, seconds), rng = uninterrupted, random.Random(6)
    kills, results, seed = {"measuring": 0, "anywhere": 0}, tmp_path / "0", 0
    for turn in range(1, 10 * KILLS):
        kind, before = min(kills, key=kills.get), written(results)
        command = server.start(*one(results, f"seed={seed}", UNDRAWN))
        if kind == "measuring":
            more = before + rng.randint(1, 4 * CELLS)
            command.wait_for(lambda results=results, more=more: written(results) >= more)
            time.sleep(rng.uniform(0, seconds / SAMPLES))
        else:
            command.work_for(rng.uniform(0, seconds))
        code = command.end(signal.SIGKILL)
        assert code in (0, -signal.SIGKILL), command.text()
        if code == 0:  # finished before its kill
            seed += 1
        elif kind == "anywhere" or before < written(results) < (seed + 1) * SAMPLES * CELLS:
            kills[kind] += 1
        if seed == 2:  # the sweep has to be right, and the next one starts from nothing
            assert rows_of(results) == whole
            results, seed = tmp_path / str(turn), 0
        if sum(kills.values()) == KILLS:
            break
    assert min(kills.values()) == KILLS // 2, f"too few of the kills met a run that had some of its rows: {kills}"
    for last in (0, 1):
        code, command = server.run(*one(results, f"seed={last}", UNDRAWN))
        assert code == 0, command.text()
    assert rows_of(results) == whole
    for path in results.rglob("rows.jsonl"):
        assert_sessions_tell_all(path)


def assert_sessions_tell_all(path):
    """Every row belongs to a session, and sessions that were killed before their first row have none."""
    noted = sessions.read(path.parent)
    count = path.read_bytes().count(b"\n")
    starts = [session["before"] for session in noted]
    assert starts == sorted(starts) and starts[0] == 0 and starts[-1] < count
    assert all(sessions.session_of(noted, "rows.jsonl", line) is not None for line in range(count))
    assert all(start % CELLS == 0 for start in starts)  # samples are whole
    assert {session["environment"]["threads"] for session in noted} == {1}


@pytest.mark.long
def test_a_kill_while_figures_are_drawn(server, tmp_path):
    marker = tmp_path / "drawing"
    command = server.start(*one(tmp_path, "limit=2"), pause=("pvcbench.plots.run_figures.save", str(marker)))
    wait_for(marker.exists)
    assert command.end(signal.SIGKILL) == -signal.SIGKILL
    before = rows_file(tmp_path).read_bytes()
    code, again = server.run(*one(tmp_path, "limit=2"))
    assert code == 0 and "finished before" in again.text()
    assert rows_file(tmp_path).read_bytes() == before
    assert (rows_file(tmp_path).parent / "figures" / "curve.png").stat().st_size > 1000


# ------------------------------------------------------------------------------------------------ disks


def finishes_like(whole, server, results, *more):
    """The same command again finishes the run, and its rows are those of an uninterrupted one."""
    code, command = server.run(*one(results, *more, UNDRAWN))
    assert code == 0, command.text()
    run = rows_file(results).parent.name
    assert rows_of(results) == part(whole, run)


def assert_full(command, results, reason):
    """One clear line, and all that was measured is there, whole."""
    (line,) = command.lines()
    assert re.search(rf"cannot write .*rows\.jsonl: {reason}; free some space and run the same command again", line)
    rows = read_rows(rows_file(results))
    assert 0 < len(rows) < SAMPLES * CELLS and len(rows) % CELLS == 0
    assert rows_file(results).read_bytes().endswith(b"\n")


@pytest.mark.long
def test_a_file_that_may_not_grow(server, whole, tmp_path):
    """A limit on the size of files stops a write half way, as a full disk does."""
    code, command = server.run(*one(tmp_path, UNDRAWN), file_limit=20_000)
    assert code == 1
    assert_full(command, tmp_path, "File too large")
    finishes_like(whole, server, tmp_path)


@contextlib.contextmanager
def small_disk(folder, options):
    """A file system of its own in memory; skips where mounting is not allowed."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("mounting a file system needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def remount(folder, options):
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


@pytest.mark.long
def test_a_full_disk(server, whole, tmp_path):
    disk = tmp_path / "disk"
    with small_disk(disk, "size=64k"):
        code, command = server.run(*one(disk, UNDRAWN))
        assert code == 1
        assert_full(command, disk, "No space left on device")
        code, command = server.run(*one(disk, UNDRAWN))
        assert code == 1 and len(command.lines()) == 1  # still full: still one line, nothing worse
        remount(disk, "size=8m")
        finishes_like(whole, server, disk)


def test_a_disk_that_is_full_from_the_start(server, tmp_path):
    disk = tmp_path / "disk"
    with small_disk(disk, "size=16k"):
        code, command = server.run(*one(disk, UNDRAWN))
        (line,) = command.lines()
        assert code == 1 and "No space left" in line and "free some space" in line
        remount(disk, "size=8m")
        code, command = server.run(*one(disk, "limit=1", UNDRAWN))
        assert code == 0, command.text()


def test_a_disk_that_is_full_when_figures_are_drawn(server, tmp_path):
    disk = tmp_path / "disk"
    with small_disk(disk, "size=48k"):
        code, command = server.run(*one(disk, "limit=2"))
        lines = command.lines()
        assert code == 1 and len(lines) == 1 and "free some space and run the same command again" in lines[0]
        assert len(rows_of(disk)) == 2 * CELLS
        remount(disk, "size=8m")
        code, command = server.run(*one(disk, "limit=2"))
        assert code == 0 and "finished before" in command.text()


def test_a_read_only_results_folder(server, tmp_path):
    disk = tmp_path / "disk"
    with small_disk(disk, "size=8m"):
        assert server.run(*one(disk, "limit=1", UNDRAWN))[0] == 0
        remount(disk, "ro")
        before = rows_file(disk).read_bytes()
        for limit in (1, 2):
            code, command = server.run(*one(disk, f"limit={limit}", UNDRAWN))
            (line,) = command.lines()
            assert code == 2 and "cannot write results to" in line and "set results=FOLDER" in line
        assert rows_file(disk).read_bytes() == before


# ------------------------------------------------------------------------------------------------ lines and writers


@pytest.fixture(scope="module")
def begun(server, tmp_path_factory):
    """A run of three samples, to be copied."""
    results = tmp_path_factory.mktemp("begun")
    assert server.run(*one(results, "limit=3", UNDRAWN))[0] == 0
    return rows_file(results)


def copied(begun, results):
    """The begun run in another place."""
    path = Path(results) / "lost" / begun.parent.name / begun.name
    path.parent.mkdir(parents=True)
    for file in begun.parent.iterdir():
        if file.is_file():
            (path.parent / file.name).write_bytes(file.read_bytes())
    return path


@pytest.mark.parametrize("left", [1, 40, 900])
def test_a_torn_last_line_is_measured_again(server, whole, begun, tmp_path, left):
    path = copied(begun, tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:left])
    code, command = server.run(*one(tmp_path, "limit=3", UNDRAWN))
    assert code == 0, command.text()
    assert rows_of(tmp_path) == part(whole, path.parent.name, 3)
    assert path.read_bytes().startswith(b"".join(lines[:-1]))


FOREIGN = ['{"sample": "0-1", "meth', "<<<<<<< HEAD", "[1, 2]", '{"another": "file"}', "\0\0\0\0"]


@pytest.mark.parametrize("foreign", FOREIGN)
def test_a_foreign_line_is_named_and_nothing_is_lost(server, whole, begun, tmp_path, foreign):
    path = copied(begun, tmp_path)
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([*lines[:7], foreign, *lines[8:]]) + "\n", encoding="utf-8")
    before = path.read_bytes()
    code, command = server.run(*one(tmp_path, "limit=3", UNDRAWN))
    (line,) = command.lines()
    assert code == 2 and f"{path}, line 8 is not a row" in line and "delete it" in line
    assert path.read_bytes() == before
    path.write_text("\n".join([*lines[:7], *lines[8:]]) + "\n", encoding="utf-8")
    assert server.run(*one(tmp_path, "limit=3", UNDRAWN))[0] == 0
    assert rows_of(tmp_path) == part(whole, path.parent.name, 3)


def test_two_processes_on_one_run(server, whole, tmp_path):
    first = server.start(*one(tmp_path, UNDRAWN))
    wait_for(lambda: has_rows(tmp_path))
    os.kill(first.process.pid, signal.SIGSTOP)  # it waits while the second starts, however long that takes
    code, second = server.run(*one(tmp_path, UNDRAWN))
    (line,) = second.lines()
    run = rows_file(tmp_path).parent.name
    assert code == 2 and f"another process is writing run {run}: wait for it or stop it" in line
    assert written(tmp_path) < SAMPLES * CELLS and first.process.is_alive(), "the first had ended before the second"
    os.kill(first.process.pid, signal.SIGCONT)
    assert first.end() == 0, first.text()
    assert rows_of(tmp_path) == part(whole, run)


# ------------------------------------------------------------------------------------------------ signals

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
PLACES = {
    "loading": "pvcbench.models.random_weights.random",
    "drawing": "pvcbench.plots.run_figures.save",
    "opening W&B": "pvcbench.runs.wandb_mirror._open",
    "mirroring": "pvcbench.runs.wandb_mirror._conclude",
}
MIRRORED = ("opening W&B", "mirroring")


@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("place", PLACES)
def test_a_signal_leaves_one_line_wherever_it_comes(server, tmp_path, number, place):
    marker = tmp_path / "here"
    mode = "wandb.mode=offline" if place in MIRRORED else "wandb.mode=disabled"
    settings = one(tmp_path, "limit=1", mode)
    settings += [UNDRAWN] if place in MIRRORED else []
    command = server.start(*settings, pause=(PLACES[place], str(marker)))
    command.wait_for(marker.exists)
    assert marker.exists(), f"it ended without coming to this place: {command.text()}"
    time.sleep(0.02)
    assert command.end(number, seconds=60) == CODES[number]
    assert command.lines() == [stopping.LINE]


@pytest.mark.long
def test_signals_at_random_moments_leave_a_run_that_goes_on(server, uninterrupted, tmp_path):
    """Moments are shares of a run's processor time; one that ends before its signal makes room for a new one."""
    (whole, seconds), rng, results, stopped = uninterrupted, random.Random(7), tmp_path / "0", 0
    for turn in range(1, 40):
        number = rng.choice(list(CODES))
        command = server.start(*one(results, UNDRAWN))
        wait_for(command.ready.exists)
        command.work_for(rng.uniform(0, seconds / 2))
        code = command.end(number, seconds=60)
        if code in (0, -number):  # it had finished: where only its process was still ending, the system stops that
            assert written(results) == SAMPLES * CELLS
            results = tmp_path / str(turn)
            continue
        assert (code, command.lines()[-1:]) == (CODES[number], [stopping.LINE]), f"turn {turn}"
        stopped += 1
        if written(results) == SAMPLES * CELLS:  # all was measured: its table was being made, or is said already
            results = tmp_path / str(turn)
            continue
        assert len(command.lines()) == 1, f"turn {turn}"
        if stopped >= 5:
            break
    assert stopped >= 5
    finishes_like(whole, server, results)


def test_ctrl_c_under_the_progress_bar(server, tmp_path):
    """On a terminal: the bar is taken away, the cursor is back, one line is said."""
    near, far = os.openpty()
    command = server.start(*one(tmp_path, UNDRAWN), said=os.ttyname(far))
    wait_for(lambda: has_rows(tmp_path, 2 * CELLS))
    code, seen = command.end(signal.SIGINT, seconds=60), b""
    while select.select([near], [], [], 0.2)[0]:
        seen += os.read(near, 65536)
    os.close(near)
    os.close(far)
    text = seen.decode()
    assert code == 130 and "samples" in text and "\x1b[?25l" in text
    assert "Traceback" not in text and text.count(stopping.LINE) == 1
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).strip().splitlines()[-1]
    assert last == stopping.LINE


@pytest.mark.parametrize("library,number", [("_multiarray_umath", signal.SIGINT), ("libtorch_cpu", signal.SIGTERM)])
def test_a_signal_while_a_fresh_process_imports(tmp_path, library, number):
    """The libraries take seconds to import, and some would turn the exception into their own."""
    command = [sys.executable, "-m", "pvcbench", *one(tmp_path, "limit=1")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: library in Path(f"/proc/{process.pid}/maps").read_text())
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (CODES[number], "", stopping.LINE + "\n")


def small(code, *signals):
    """A few lines in a fresh process that handles signals; each comes when the one before has been swallowed."""
    head = "import os, signal, sys, time\nfrom pvcbench.runs import signals as stopping\n"
    with subprocess.Popen(
        [sys.executable, "-c", head + textwrap.dedent(code)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        ready = process.stdout.readline()
        assert ready == "ready\n", process.stderr.read()
        started = time.monotonic()
        for number in signals[:-1]:
            process.send_signal(number)
            assert process.stdout.readline() == "swallowed\n"
        process.send_signal(signals[-1])
        try:
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()  # where it did not end
    return process.returncode, out, err, time.monotonic() - started


STUBBORN = """
stopping.PATIENCE = {patience}
with stopping.handled(), stopping.orderly():
    said = "ready"
    while True:
        try:
            print(said, flush=True)
            time.sleep(60)
        except BaseException:
            said = "swallowed"
"""


def test_a_second_signal_ends_what_swallows_the_first():
    code, _, err, seconds = small(STUBBORN.format(patience=60), signal.SIGTERM, signal.SIGINT)
    assert (code, err) == (143, stopping.LINE + "\n") and seconds < 30


def test_what_swallows_a_signal_ends_after_a_while():
    code, _, err, seconds = small(STUBBORN.format(patience=0.5), signal.SIGINT)
    assert (code, err) == (130, stopping.LINE + "\n") and seconds < 30


def test_a_signal_while_an_object_is_deleted():
    """Python prints such an exception and goes on; the process has to end all the same."""
    code, _, err, _ = small(
        """
        class Last:
            def __del__(self):
                print("ready", flush=True)
                time.sleep(5)
        with stopping.handled(), stopping.orderly():
            Last()
            time.sleep(60)
        """,
        signal.SIGINT,
    )
    assert (code, err) == (130, stopping.LINE + "\n")


def test_an_ignored_signal_stays_ignored():
    """As under nohup, or in the background of a shell script."""
    code, out, err, _ = small(
        """
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with stopping.handled(), stopping.orderly():
            print("ready", flush=True)
            time.sleep(0.8)
        print("done")
        """,
        signal.SIGINT,
    )
    assert (code, out, err) == (0, "done\n", "")


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (*CODES, signal.SIGALRM)], sys.unraisablehook
    with stopping.handled():
        assert signal.getsignal(signal.SIGINT) is not before[0][0]
    assert ([signal.getsignal(number) for number in (*CODES, signal.SIGALRM)], sys.unraisablehook) == before


# ------------------------------------------------------------------------------------------------ sessions


def test_sessions_of_an_older_run_begin_with_its_environment(server, begun, tmp_path):
    """A run from before sessions.jsonl goes on: its first rows belong to environment.json."""
    path = copied(begun, tmp_path)
    (path.parent / sessions.NAME).unlink()
    first = json.loads((path.parent / "environment.json").read_text()) | {"processor": "another one"}
    (path.parent / "environment.json").write_text(json.dumps(first))
    assert server.run(*one(tmp_path, "limit=4", UNDRAWN))[0] == 0
    noted = sessions.read(path.parent)
    owners = [sessions.session_of(noted, path.name, line)["environment"]["processor"] for line in (0, 14, 15, 19)]
    assert owners[:2] == ["another one"] * 2 and "another one" not in owners[2:]
    assert json.loads((path.parent / "environment.json").read_text()) == first
    assert any(
        line.startswith("processor: another one then") for line in sessions.differences(first, noted[-1]["environment"])
    )


def test_a_torn_session_is_passed_over(server, begun, tmp_path):
    path = copied(begun, tmp_path)
    with (path.parent / sessions.NAME).open("a") as file:
        file.write('{"file": "rows.jsonl", "bef')
    assert server.run(*one(tmp_path, "limit=4", UNDRAWN))[0] == 0
    noted = sessions.read(path.parent)
    assert [session["before"] for session in noted] == [0, 0, 3 * CELLS]
