"""Packing a run: equal bytes, hashes, nothing private, and refusals in one line."""

import hashlib
import json
import platform

import pytest
import yaml

from pvcbench.board import archive, pack, private, submission
from pvcbench.cli.main import main as command


def told(capsys, *arguments):
    """The exit code and what was said; a refusal is one line on stderr."""
    code = command(["submit", *map(str, arguments)])
    said = capsys.readouterr()
    if code == 2:
        assert said.err.startswith("pvcbench: ") and said.err.count("\n") == 1
    return code, said.out + said.err


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def rewrite(path, change):
    """Changes every row of a file by a function of its number and itself."""
    rows = lines_of(path)
    for number, row in enumerate(rows):
        change(number, row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def configured(run, change):
    """Changes what config.yaml holds."""
    whole = yaml.safe_load((run / "config.yaml").read_text())
    change(whole)
    (run / "config.yaml").write_text(yaml.safe_dump(whole, sort_keys=False))


def test_a_run_is_packed_the_same_twice_and_can_be_read(run, tmp_path, capsys):
    path = tmp_path / "one.zip"
    assert told(capsys, run, "--by", "Ada", "--note", "two\nlines", "--out", path)[0] == 0
    code, said = told(capsys, run, "--by", "Ada", "--note", "two\nlines", "--out", f"{tmp_path}/two/")
    again = tmp_path / "two" / f"{run.name}.pvcbench.zip"
    assert code == 0 and again.read_bytes() == path.read_bytes() and f"run {run.name}, 5 files" in said
    found = submission.read(path, tmp_path / "place")
    assert (found.manifest.by, found.manifest.note, found.manifest.run) == ("Ada", "two\nlines", run.name)
    assert found.complete and len(found.rows) == 15 and found.rows["sample"].nunique() == 3
    files = archive.unpacked(path.read_bytes(), path)
    assert set(files) == {
        "manifest.json",
        "config.yaml",
        "environment.json",
        "sessions.jsonl",
        "rows.jsonl",
        "samples.jsonl",
    }
    assert files["rows.jsonl"] == (run / "rows.jsonl").read_bytes()
    for name, part in found.manifest.files.items():
        assert part.sha256 == hashlib.sha256(files[name]).hexdigest() and part.bytes == len(files[name])


def test_another_file_is_not_replaced(run, tmp_path, capsys):
    assert told(capsys, run, "--by", "Ada", "--out", tmp_path / "x.zip")[0] == 0
    assert told(capsys, run, "--by", "Ada", "--out", tmp_path / "x.zip")[0] == 0
    before = (tmp_path / "x.zip").read_bytes()
    code, said = told(capsys, run, "--by", "Eve", "--out", tmp_path / "x.zip")
    assert code == 2 and "holds another submission" in said and (tmp_path / "x.zip").read_bytes() == before


def test_excerpts_can_stay_behind(run, tmp_path, capsys):
    code, said = told(capsys, run, "--by", "Ada", "--no-excerpts", "--out", tmp_path / "x.zip")
    assert code == 0 and "it holds excerpts" not in said
    assert "samples.jsonl" not in archive.unpacked((tmp_path / "x.zip").read_bytes(), tmp_path)


def test_paths_and_host_names_are_taken_out_and_told(run, monkeypatch):
    host = "tower-of-babel"
    monkeypatch.setattr(platform, "node", lambda: f"{host}.example.org")
    sentence = "OSError: cannot read /home/ada/models/big/model.safetensors (2/3)"

    def fail(number, row):
        if number == 4:
            row |= {"score": None, "output": None, "error": sentence}

    first = json.loads((run / "environment.json").read_text())
    first["packages"]["mine"] = "1.0 @ file:///home/ada/work/mine"
    first["variables"]["SLURM_JOB_ID"] = f"12.{host}"
    first["seen"] = ["~/data/x.txt", r"C:\Users\ada\x.txt", "../../up/y.txt", f"on {host}, quietly"]
    (run / "environment.json").write_text(json.dumps(first))
    configured(run, lambda whole: whole["config"]["wandb"].update(entity="ada"))
    rewrite(run / "rows.jsonl", fail)
    made = pack.pack(run, "Ada")
    files = archive.unpacked(made.content, run)
    whole = b"".join(files.values()).decode()
    for secret in ("/home", "Users", "ada", host, str(run.parent.parent), "up/"):
        assert secret not in whole, secret
    environment, rows = json.loads(files["environment.json"]), files["rows.jsonl"].decode().splitlines()
    assert environment["seen"] == [f"{private.GONE}/x.txt"] * 2 + [f"{private.GONE}/y.txt", "on <host>, quietly"]
    assert json.loads(rows[4])["error"] == f"OSError: cannot read {private.GONE}/model.safetensors (2/3)"
    assert rows[3] == (run / "rows.jsonl").read_text().splitlines()[3]
    places = [line.partition(": ")[0] for line in made.manifest.stripped]
    assert {"config.results", "config.wandb.entity", "environment.packages.mine", "environment.seen[0]"} <= set(places)
    assert any(place.startswith("rows.jsonl line 5") for place in places)


def test_texts_that_are_no_paths_stay():
    stripper = private.Stripper()
    for text in (
        "2/3 and/or 4",
        "https://example.org/a/b",
        "blocked",
        "a / b",
        "</s>",
        "\n\n",
        "cuda:0",
        "methods.h2o.H2O",
    ):
        assert stripper.text(text, "here") == text
    assert not stripper.told


@pytest.mark.parametrize(("place", "text"), [
    ("note", "hf_" + "a1B2" * 8), ("note", "sk-" + "x" * 30), ("note", "AKIA" + "ABCD" * 4),
    ("api_key", "12345"), ("url", "https://ada:pass@example.org"),
])  # fmt: skip
def test_secrets_are_refused_and_not_repeated(run, place, text, tmp_path, capsys):
    configured(run, lambda whole: whole["config"]["model"].update({place: text}))
    code, said = told(capsys, run, "--by", "Ada", "--out", tmp_path / "x.zip")
    assert code == 2 and f"config.model.{place} holds what looks like" in said and text not in said
    assert not (tmp_path / "x.zip").exists()


def test_an_unfinished_run_needs_a_word(run, tmp_path, capsys):
    configured(run, lambda whole: whole["config"].update(limit=5))
    code, said = told(capsys, run, "--by", "Ada", "--out", tmp_path / "x.zip")
    assert code == 2 and "is not finished (limit=5 asks for more samples than the 3 measured)" in said
    code, said = told(capsys, run, "--by", "Ada", "--partial", "--out", tmp_path / "x.zip")
    assert code == 0 and "incomplete: limit=5" in said
    found = submission.read(tmp_path / "x.zip", tmp_path / "place")
    assert not found.complete and list(found.missing) == found.manifest.missing


def test_lost_rows_and_samples_are_missed(run):
    kept = (run / "rows.jsonl").read_text().splitlines(keepends=True)
    (run / "rows.jsonl").write_text("".join(kept[:-6]))
    made = pack.pack(run, "Ada", partial=True)
    assert any("lack some of the cells" in line for line in made.manifest.missing)
    assert any("were begun and have no row" in line for line in made.manifest.missing)
    (run / "rows.jsonl").write_text("".join(line for line in kept if '"method": "h2o"' not in line))
    assert "h2o: no row at all" in pack.pack(run, "Ada", partial=True).manifest.missing


def test_without_a_limit_the_task_says_how_many_samples_there_are(run):
    configured(run, lambda whole: whole["config"].update(limit=None))
    assert pack.pack(run, "Ada", partial=True).manifest.missing == ["3 of the task's 15 samples are measured"]


def spoil(key, value):
    return lambda number, row: number == 2 and row.update({key: value})


@pytest.mark.parametrize(("change", "problem"), [
    (spoil("method", "mine"), "line 3: a row of method 'mine', which the run does not have"),
    (spoil("budget", "0.9"), "line 3: a row of budget '0.9'"),
    (spoil("task", "other"), "line 3: a row of task 'other'"),
    (spoil("score", "high"), "line 3: score: Input should be a valid number"),
    (spoil("schema", 9), "line 3: a row of schema '9'"),
    (spoil("score", None), "line 3: a row has a score or an error, and not both"),
    (spoil("protocol", {"query_aware": False}), "line 3: a row with query_aware=False in a run with query_aware=True"),
    (lambda number, row: row.pop("kv_bytes"), "line 1: a row without kv_bytes"),
])  # fmt: skip
def test_rows_of_another_run_or_schema_are_refused(run, change, problem, capsys):
    rewrite(run / "rows.jsonl", change)
    code, said = told(capsys, run, "--by", "Ada")
    assert code == 2 and problem in said


def altered(run):
    configured(run, lambda whole: whole["identity"].update(seed=9))


def path_in_identity(run):
    configured(run, lambda whole: whole["identity"]["task"].update(source="/home/ada/texts"))
    configured(run, lambda whole: whole.update(run=submission.run_id(whole["identity"])))


def linked(run):
    (run / "elsewhere").write_bytes((run / "rows.jsonl").read_bytes())
    (run / "rows.jsonl").unlink()
    (run / "rows.jsonl").symlink_to("elsewhere")


def long_excerpt(run):
    lines = lines_of(run / "samples.jsonl")
    lines[0]["excerpt"] = [{"from": 0, "to": 90000, "text": "a whole book", "span": None}]
    (run / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(("change", "problem"), [
    (altered, "config.yaml was altered"),
    (path_in_identity, "identity.task.source holds a path of this machine"),
    (linked, "rows.jsonl is a link"),
    (long_excerpt, "more of a prompt than pvcbench stores"),
    (lambda run: (run / "rows.jsonl").unlink(), "has no rows"),
    (lambda run: (run / "environment.json").write_text("{"), "environment.json cannot be read as JSON"),
])  # fmt: skip
def test_altered_runs_are_refused(run, change, problem, capsys):
    change(run)
    code, said = told(capsys, run, "--by", "Ada")
    assert code == 2 and problem in said


@pytest.mark.parametrize(("by", "problem"), [
    ("", "--by must have"), ("x" * 200, "--by must have"), ("Ada\x07", "plain text"), ("Ada\u202eadA", "plain text"),
])  # fmt: skip
def test_a_name_must_be_one_that_can_be_read(run, by, problem, capsys):
    code, said = told(capsys, run, "--by", by)
    assert code == 2 and problem in said
