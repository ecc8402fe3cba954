"""Scoring stored answers again: changed metrics are found, written once, and nothing else is touched."""

import fcntl
import json
import subprocess
import sys

import pytest
import yaml

from pvcbench.cli.main import main as command
from pvcbench.config import compose
from pvcbench.runs import runner
from pvcbench.runs.rows import read_rows
from pvcbench.runs.run_id import run_id
from pvcbench.tasks import jsonl

JSONL = {"_target_": "pvcbench.tasks.jsonl.Jsonl", "path": "/no/such/file.jsonl", "metric": "contains"}
LONGBENCH = {"_target_": "pvcbench.tasks.longbench.task.LongBench", "data_dir": "/no/such/folder", "sets": ["trec"]}


def row(sample, output, score, method="h2o", metric="contains", **changes):
    """A row of a run on own data whose gold answer is `red`."""
    made = {"task": "jsonl", "sample": sample, "sample_info": {}, "cluster": sample, "stratum": "", "method": method}
    made |= {"budget": "0.5", "score": score, "metrics": {} if score is None else {metric: score}, "output": output}
    return made | {"answers": ["red"], "error": None, "reference": False} | changes


def write(folder, rows, task=JSONL, name="jsonl"):
    """A run folder as the runner leaves it."""
    folder.mkdir(parents=True)
    identity = {"task": {"name": name}}
    stored = {"run": run_id(identity), "identity": identity, "config": {"task": task}}
    (folder / "config.yaml").write_text(yaml.safe_dump(stored), encoding="utf-8")
    (folder / "rows.jsonl").write_text(
        "".join(json.dumps(one | {"task": name}) + "\n" for one in rows), encoding="utf-8"
    )
    return folder / "rows.jsonl"


def said(capsys, *arguments):
    """The exit code and what was printed."""
    code = command(["rescore", *(str(argument) for argument in arguments)])
    return code, capsys.readouterr()


@pytest.fixture
def strict(monkeypatch):
    """The metric has changed since the rows were made: the answer must now equal the gold one."""
    monkeypatch.setitem(jsonl.METRICS, "contains", jsonl.METRICS["exact"])


def test_equal_metrics_leave_rows_alone(tmp_path, capsys):
    path = write(tmp_path / "run", [row("a", "It is red", 1.0), row("b", "blue", 0.0)])
    before, changed = path.read_bytes(), path.stat().st_mtime_ns
    code, printed = said(capsys, tmp_path, "--write")
    assert code == 0 and printed.out == f"{tmp_path / 'run'}: 2 rows, 0 changed\n"
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (before, changed)
    assert not path.with_name("rows.jsonl.bak").exists()


def test_a_changed_metric_is_found_and_written_once(tmp_path, capsys, strict):
    rows = [
        row("a", "It is red", 1.0),
        row("b", " Red\n", 1.0),
        row("a", "red", 1.0, "full"),
        row("b", "no", 0.0, "full"),
    ]
    path = write(tmp_path / "one" / "run", rows)
    other = write(tmp_path / "two" / "run", [row("a", "red", 1.0)])
    before = path.read_bytes()
    code, printed = said(capsys, tmp_path)
    assert code == 0 and path.read_bytes() == before
    assert printed.out.splitlines() == [
        f"{path.parent}: 4 rows, 1 changed; h2o 0.5: 1.0000 -> 0.5000",
        f"{other.parent}: 1 rows, 0 changed",
    ]
    assert said(capsys, tmp_path, "--write")[1].out == printed.out
    now = [json.loads(line) for line in path.read_bytes().decode().split("\n")[:-1]]
    assert now == [{**rows[0], "score": 0.0, "metrics": {"contains": 0.0}}, *rows[1:]]
    assert path.with_name("rows.jsonl.bak").read_bytes() == before and not path.with_name("rows.jsonl.tmp").exists()
    assert "4 rows, 0 changed" in said(capsys, tmp_path, "--write")[1].out


def test_the_first_version_stays_beside(tmp_path, capsys, monkeypatch, strict):
    path = write(tmp_path / "run", [row("a", "It is red", 1.0)])
    first = path.read_bytes()
    said(capsys, tmp_path, "--write")
    monkeypatch.setitem(jsonl.METRICS, "contains", lambda answers, output: 0.25)
    assert "h2o 0.5: 0.0000 -> 0.2500" in said(capsys, tmp_path, "--write")[1].out
    assert path.with_name("rows.jsonl.bak").read_bytes() == first


def test_rows_without_an_answer_stay(tmp_path, capsys, strict):
    rows = [row("a", "It is red", 1.0), row("b", None, None, error="OutOfReach: no"), row("c", "red!", 1.0, error="x")]
    path = write(tmp_path / "one", rows)
    assert "3 rows, 1 changed" in said(capsys, tmp_path, "--write")[1].out
    assert read_rows(path)[1:] == rows[1:]
    write(tmp_path / "two", [row("a", None, -2.5, metric="nll")])
    bare = {"_target_": "pvcbench.tasks.base.Task"}  # has no score of its own
    write(tmp_path / "three", [row("a", "red", 1.0)], bare, "")
    assert "nothing to do" in said(capsys, tmp_path / "three")[1].out
    assert "1 rows, none with an answer that its task scores: nothing to do" in said(capsys, tmp_path / "two")[1].out


def test_each_row_has_its_own_metric(tmp_path, capsys):
    rows = [
        row("a", "It is red", 0.0, metric="exact"),
        row("b", "a red one", 1.0),
        row("c", "red it is", 0.5, metric="f1"),
    ]
    write(tmp_path / "run", rows)
    assert "3 rows, 0 changed" in said(capsys, tmp_path)[1].out


def test_longbench_rows_need_neither_model_nor_data(tmp_path, capsys):
    info = {"set": "trec", "classes": ["red", "blue"]}
    rows = [
        row("trec/a", "red", 1.0, metric="classification", sample_info=info),
        row("trec/b", "red or blue", 1.0, metric="classification", sample_info=info),  # half, by its classes
        row("trec/c", "\nred\nblue", 1.0, metric="classification", sample_info=info),
        row("lcc/d", "red", 1.0, metric="edit", sample_info={"set": "lcc"}),  # the metric has another name now
    ]
    path = write(tmp_path / "run", rows, LONGBENCH, "longbench")
    code, printed = said(capsys, tmp_path, "--write")
    assert code == 0 and "4 rows, 2 changed; h2o 0.5: 1.0000 -> 0.8750" in printed.out
    assert [one["score"] for one in read_rows(path)] == [1.0, 0.5, 1.0, 1.0]
    assert read_rows(path)[3]["metrics"] == {"code_similarity": 1.0}


def test_a_real_run_scores_the_same_again(tmp_path, capsys):
    settings = ["model=random", "threads=1", "wandb.mode=disabled", "task.lengths=[600]", "limit=1", "method=h2o"]
    result = runner.run(compose.composed([*settings, f"results={tmp_path}", "budgets=[0.5]"]), figures=False)
    path = result.folder / "rows.jsonl"
    before = path.read_bytes()
    code, printed = said(capsys, tmp_path, "--write")
    assert code == 0 and printed.out == f"{result.folder}: 2 rows, 0 changed\n" and path.read_bytes() == before
    rows = read_rows(path)
    rows[0] |= {"output": f"It is {rows[0]['answers'][0]}."}
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    assert "2 rows, 1 changed; full 1.0: 0.0000 -> 1.0000" in said(capsys, tmp_path, "--write")[1].out


def test_a_run_that_is_being_written_is_left_alone(tmp_path, capsys, strict):
    path = write(tmp_path / "run", [row("a", "It is red", 1.0)])
    before = path.read_bytes()
    with (path.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, printed = said(capsys, tmp_path, "--write")
        assert code == 2 and "another process is writing" in printed.err and path.read_bytes() == before
        assert said(capsys, tmp_path)[0] == 0  # reading waits for nobody
    assert said(capsys, tmp_path, "--write")[0] == 0 and path.read_bytes() != before


def test_mistakes_are_one_line(tmp_path, capsys):
    broken = {
        "none": "no results under",
        "unnamed": "no readable config.yaml",
        "typo": "cannot build the task of",
        "object": "named 'mine'",
    }
    (tmp_path / "none").mkdir()
    write(tmp_path / "unnamed", [row("a", "red", 1.0)])
    (tmp_path / "unnamed" / "config.yaml").write_text("run: x\n")
    write(tmp_path / "typo", [row("a", "red", 1.0)], {"_target_": "pvcbench.tasks.jsonl.Jsonk"})
    write(tmp_path / "object", [row("a", "red", 1.0)], JSONL, "mine")
    for name, expected in broken.items():
        code, printed = said(capsys, tmp_path / name)
        assert code == 2 and expected in printed.err and printed.err.count("\n") == 1, name


def test_the_command_runs(tmp_path):
    write(tmp_path / "run", [row("a", "red", 1.0)])
    done = subprocess.run(
        [sys.executable, "-m", "pvcbench", "rescore", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'run'}: 1 rows, 0 changed\n"), done.stderr
