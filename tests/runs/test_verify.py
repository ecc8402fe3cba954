"""Verifying a run: rows of every kind repeat exactly, what was altered is found, other machines get a tolerance."""

import hashlib
import json
import sys

import pytest
import yaml

from pvcbench.cli.main import main as command
from pvcbench.config import compose
from pvcbench.errors import UserError
from pvcbench.runs import environment, identity, runner, spec, stored, verify
from pvcbench.runs.row_comparison import TIMES, Tolerance, changes, row_differences, text_difference
from pvcbench.runs.rows import Stored, read_rows

COMMON = ["model=random", "threads=1", "wandb.mode=disabled", "method=[h2o,streaming_llm]", "budgets=[0.3,0.6]"]
TEXT = " ".join(str(number * number % 997) for number in range(400))
KINDS = {
    "generate": ["task=needle", "task.lengths=[300]", "task.max_new_tokens=8", "limit=3"],
    "continuation": ["task=perplexity", "task.prefix=100", "task.continuation=30", "limit=3"],
    "streaming": ["task=perplexity", "task.protocol=streaming", "task.tokens=80", "limit=3"],
    "observe": [
        "task=attention_patterns",
        "task.tokens=[96]",
        "task.following=8",
        "task.needles=0",
        "task.documents=2",
    ],
    "measure": ["task=throughput", "task.prompts=[64]", "task.new_tokens=[4]", "task.batches=[2]", "task.repeats=1"],
}


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documents")
    for number in range(3):
        (folder / f"{number}.txt").write_text(f"Document {number}. {TEXT}", encoding="utf-8")
    return folder


@pytest.fixture
def run(tmp_path, documents):
    """Runs a kind and returns its folder."""

    def made(kind, *more):
        source = [] if kind in ("generate", "measure") else [f"task.source={documents}"]
        settings = [*COMMON, *KINDS[kind], *source, f"results={tmp_path}", *more]
        return runner.run(compose.composed(settings), figures=False).folder

    return made


def told(folder, *options, **settings):
    """The report of a run and all lines said about it."""
    lines = []
    report = verify.verify(folder, *options, **settings, say=lines.append)
    return report, lines


def rewrite(folder, change, file="rows.jsonl"):
    """Changes every row by a function of its number and itself."""
    rows = read_rows(folder / file)
    for number, row in enumerate(rows):
        change(number, row)
    (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def elsewhere(folder):
    """Makes the run one of another processor."""
    for name in ("environment.json", "sessions.jsonl"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace(json.dumps(environment.processor())[1:-1], "Another"))


def contents(folder):
    """Every file with its bytes and its time."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(path, hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in files]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.sampled(2)
def test_every_kind_repeats_exactly_and_nothing_is_written(run, kind):
    folder = run(kind)
    before = contents(folder)
    report, lines = told(folder, cells=6)
    assert report.agree and report.tolerance is None and not report.changed, lines
    assert report.compared >= (3 if kind == "measure" else 6) and lines[-1].startswith("agree: ")
    assert contents(folder) == before


def test_an_altered_row_is_found(run, capsys):
    folder = run("generate")
    assert command(["verify", str(folder), "--cells", "15"]) == 0
    assert "agree: 15 of 15 rows of 3 samples are identical" in capsys.readouterr().out

    def altered(number, row):
        if number == 7:
            row |= {"output": row["output"][:5] + "X" + row["output"][6:], "kept_entries": row["kept_entries"] + 1}

    rewrite(folder, altered)
    assert command(["verify", str(folder), "--cells", "15"]) == 1
    said = capsys.readouterr().out
    row = read_rows(folder / "rows.jsonl")[7]
    name = f"  {row['sample']} {row['method']} {row['budget']}: "
    assert f"{name}output: from character 5 on 'X" in said and f"{name}kept_entries: {row['kept_entries']} then" in said
    assert "differ: 14 of 15 rows" in said


def test_a_changed_identity_is_told_part_by_part(run, monkeypatch, capsys):
    folder = run("generate")
    real = identity.of_method
    monkeypatch.setattr(spec.engines, "VERSION", 99)
    monkeypatch.setattr(identity, "of_method", lambda method: real(method) | {"source": "f" * 64})
    assert command(["verify", str(folder), "--cells", "1"]) == 1
    said = capsys.readouterr().out
    assert "engine.version: 2 then, 99 now (a newer definition of it)" in said
    assert said.count("now (the method's code was changed)") == 3 and "ffffffffffff now" in said
    assert "agree: 5 of 5" in said and "--rows-only" in said
    assert command(["verify", str(folder), "--cells", "1", "--rows-only"]) == 0


def test_other_weights_are_told_and_their_rows_differ(run, capsys):
    folder = run("continuation")
    text = (folder / "config.yaml").read_text()
    whole = yaml.safe_load(text)
    whole["config"]["model"]["seed"] = 1
    (folder / "config.yaml").write_text(yaml.safe_dump(whole, sort_keys=False))
    assert command(["verify", str(folder), "--cells", "1", "--rows-only"]) == 1
    said = capsys.readouterr().out
    assert "model.weights: seed 0" in said and "(other weights)" in said and "(other weights in memory)" in said
    assert "differ: 0 of 5" in said
    whole["identity"]["seed"] = 5
    (folder / "config.yaml").write_text(yaml.safe_dump(whole, sort_keys=False))
    assert command(["verify", str(folder)]) == 2
    assert "config.yaml was altered" in capsys.readouterr().err


def test_elsewhere_numbers_may_differ_a_little(run):
    folder = run("continuation")
    elsewhere(folder)

    def moved(by):
        def change(number, row):
            if number == 3:
                row["score"] *= 1 + by

        return change

    rewrite(folder, moved(1e-4))
    report, lines = told(folder, cells=15)
    assert report.agree and report.tolerance.relative == 1e-3
    assert any("processor: Another then" in line for line in lines)
    assert not told(folder, cells=15, relative=1e-6)[0].agree
    rewrite(folder, moved(1e-2))
    report, lines = told(folder, cells=15)
    assert not report.agree and len(report.rows) == 1
    assert any("score: " in line for line in lines)


def test_elsewhere_a_tenth_of_the_outputs_may_be_others(run):
    folder = run("generate")
    elsewhere(folder)

    def other(numbers):
        def change(number, row):
            if number in numbers:
                row |= {"output": "something else", "score": 1.0, "metrics": {"accuracy": 1.0}}

        return change

    rewrite(folder, other({4}))
    report, lines = told(folder, cells=15)
    assert report.agree and len(report.answers) == 1 and not report.rows
    assert "1 with another output" in lines[-1] and "from character 0 on 'something else' then" in lines[-2]
    rewrite(folder, other({4, 9}))
    report, lines = told(folder, cells=15)
    assert not report.agree and lines[-1].startswith("differ: 13 of 15 rows")


def test_rows_of_several_files_and_sessions(run):
    """Rows of a shard belong to that shard's session; where nothing tells of it, equality is not asked for."""
    folder = run("generate")
    lines = (folder / "rows.jsonl").read_text().splitlines(keepends=True)
    (folder / "rows.jsonl").write_text("".join(lines[:5]))
    (folder / "rows-2of2.jsonl").write_text("".join(lines[5:]))
    report, _ = told(folder, cells=15)
    assert report.agree and report.compared == 15 and report.tolerance is not None
    with (folder / "sessions.jsonl").open("a") as file:
        session = {"file": "rows-2of2.jsonl", "before": 0, "environment": environment.describe()}
        file.write(json.dumps(session) + "\n")
    report, _ = told(folder, cells=15)
    assert report.agree and report.tolerance is None


def test_batches_cannot_be_put_together_again(run):
    report, lines = told(run("generate", "batch=2"), cells=1)
    assert report.agree and report.tolerance is not None and any("batch: 2" in line for line in lines)


def test_a_sample_that_is_no_more_differs(run):
    folder = run("generate")
    rewrite(folder, lambda number, row: row.update(sample="9-9"))
    report, lines = told(folder, cells=5)
    assert not report.agree and any("no such sample and cell" in line for line in lines)


def test_own_methods_are_found(tmp_path, monkeypatch, capsys):
    own = tmp_path / "own"
    (own / "method").mkdir(parents=True)
    (own / "method" / "oldest.yaml").write_text("# @package methods.oldest\n_target_: oldest_method.Oldest\n")
    (own / "oldest_method.py").write_text(
        "from dataclasses import dataclass\nfrom pvcbench.policy import Method\n\n"
        "@dataclass(frozen=True)\nclass Oldest(Method):\n"
        "    def scores(self, seen):\n        return -seen.positions.double()\n"
    )
    monkeypatch.setattr(sys, "path", [str(own), *sys.path])
    settings = [*COMMON, *KINDS["generate"], "method=oldest", f"results={tmp_path / 'out'}"]
    folder = runner.run(compose.composed(settings, [str(own)]), figures=False).folder
    sys.path.remove(str(own))
    sys.modules.pop("oldest_method")
    assert command(["verify", str(folder), "--cells", "1"]) == 2
    assert "cannot build method oldest" in capsys.readouterr().err
    assert command(["verify", str(folder), "--cells", "1", "--config-dir", str(own)]) == 0


def test_bad_input_gets_one_line(run, tmp_path, capsys):
    folder = run("generate")
    capsys.readouterr()

    def refused(*arguments):
        assert command(["verify", *(str(one) for one in arguments)]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    assert "name the folder of one run" in refused(tmp_path / "nothing")
    assert "name the folder of one run" in refused(folder.parent)
    assert "--cells must be 1 or more" in refused(folder, "--cells", 0)
    whole = yaml.safe_load((folder / "config.yaml").read_text())
    whole["config"]["colour"] = "red"
    (folder / "config.yaml").write_text(yaml.safe_dump(whole))
    assert "cannot read its configuration" in refused(folder)
    rewrite_errors = [json.loads(line) | {"error": "failed"} for line in (folder / "rows.jsonl").open()]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rewrite_errors))
    del whole["config"]["colour"]
    (folder / "config.yaml").write_text(yaml.safe_dump(whole))
    assert "nothing to verify" in refused(folder)
    (folder / "rows.jsonl").unlink()
    assert "has no rows" in refused(folder)


def test_a_stored_configuration_is_whole(run):
    """What is run again is the stored configuration, not a shard of it, under today's defaults of newer keys."""
    folder = run("generate")
    whole = yaml.safe_load((folder / "config.yaml").read_text())
    whole["config"]["shard"] = "2/4"
    del whole["config"]["wandb"]
    (folder / "config.yaml").write_text(yaml.safe_dump(whole))
    made = stored.stored_config(folder)
    assert made.wandb.mode == "offline" and made.task.lengths == [300] and made.get("shard") is None
    assert list(made.budgets) == [0.3, 0.6]
    del whole["config"]["task"]
    (folder / "config.yaml").write_text(yaml.safe_dump(whole))
    with pytest.raises(UserError, match="objects, not configurations, of: task"):
        stored.stored_config(folder)


def kept(samples, methods=("full", "h2o", "random"), budgets=("0.1", "0.5"), failed=()):
    """Stored rows without contents."""
    rows = {}
    for sample in range(samples):
        for method in methods:
            for budget in budgets:
                error = "failed" if sample in failed else None
                row = {"sample": str(sample), "method": method, "budget": budget, "error": error}
                one = Stored(row, "rows.jsonl", len(rows))
                rows[one.key] = one
    return rows


def test_whole_samples_are_chosen_where_cells_run_together():
    rows = kept(20, failed=range(10))
    chosen = [verify.choose(rows, 8, seed, alone=False) for seed in range(20)]
    assert all([len(keys) for keys in one.values()] == [6, 6] for one in chosen)
    assert len({tuple(sorted(one)) for one in chosen}) > 10 and chosen[3] == verify.choose(rows, 8, 3, alone=False)
    assert {sample for one in chosen for sample in one} <= {str(number) for number in range(10, 20)}
    assert len(verify.choose(rows, 1000, 0, alone=False)) == 10


def test_single_cells_are_spread_over_methods_and_budgets():
    rows = kept(20)
    for seed in range(20):
        (keys,) = verify.choose(rows, 3, seed, alone=True).values()
        assert {method for _, method, _ in keys} == {"full", "h2o", "random"}
    assert sum(len(keys) for keys in verify.choose(rows, 24, 0, alone=True).values()) == 24


def test_rows_are_compared_field_by_field():
    tolerance = Tolerance.of("float32")
    row = {"score": -2.5, "output": None, "spans_kept": {"needle": [0.5, 1.0]}, "kept_entries": 40, "prefill_s": 1.0}
    row |= {"metrics": {"nll": 2.5}, "error": None, "prompt_sha256": "a" * 64, "reference": True}
    assert row_differences(row, dict(row), None) == ([], False)
    assert row_differences(row, row | {"prefill_s": 9.0}, None) == ([], False)
    assert row_differences(row, row | {"newer": 1}, None) == ([], False)  # a field of a later version
    assert row_differences(row, row | {"score": -2.5000001}, None) == (["score: -2.5 then, -2.5000001 now"], False)
    assert row_differences(row, row | {"score": -2.5000001}, tolerance) == ([], False)
    moved = row | {"spans_kept": {"needle": [0.55, 0.95]}}
    assert row_differences(row, moved, tolerance) == ([], False)
    assert row_differences(row, moved, None)[0] == ["spans_kept.needle[0]: 0.5 then, 0.55 now", "spans_kept: 1 more"]
    for name, value in {"prompt_sha256": "b" * 64, "error": "RuntimeError", "reference": 1, "kept_entries": 41}.items():
        lines, _ = row_differences(row, row | {name: value}, tolerance)
        assert len(lines) == 1 and lines[0].startswith(f"{name}: ")
    assert row_differences(row, row | {"metrics": {"nll": 2.5, "bytes": 3}}, tolerance)[0]
    assert "prefill_s" in TIMES
    spoken = row | {"output": "one two", "score": 1.0}
    assert row_differences(spoken, spoken | {"output": "one too", "score": 0.0}, tolerance) == ([], True)
    lines, other = row_differences(spoken, spoken | {"output": "one too", "score": 0.0}, None)
    assert other and len(lines) == 2


def test_sixteen_bits_get_more():
    assert Tolerance.of("bfloat16").relative == 10 * Tolerance.of("float32").relative
    assert Tolerance.of("bfloat16", 1e-5).relative == 1e-5


def test_texts_and_identities_say_where_they_part():
    assert text_difference("abcdef", "abcxef") == "from character 3 on 'def' then, 'xef' now"
    assert text_difference("abc", "abcd") == "from character 3 on '' then, 'd' now"
    then = {"a": {"weights": "0" * 64, "b": [1, 2]}, "gone": {}, "same": (1, 2)}
    now = {"a": {"weights": "1" * 64, "b": [1, 3]}, "new": 1, "same": [1, 2]}
    assert changes(then, now) == [
        "a.b: [1, 2] then, [1, 3] now",
        "a.weights: 000000000000 then, 111111111111 now (other weights)",
        "gone: {} then, nothing now",
        "new: nothing then, 1 now",
    ]
