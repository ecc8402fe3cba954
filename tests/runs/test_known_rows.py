"""Rows of another run: taken where its identity says that they are equal, and from nowhere else."""

import json

import pytest

from pvcbench.config import building, compose
from pvcbench.evaluation.kinds import KINDS
from pvcbench.runs import runner
from pvcbench.runs.row_comparison import row_differences
from pvcbench.runs.rows import key_of, read_rows
from pvcbench.tasks.needle.task import Needle

SETTINGS = ["model=random", "dtype=float64", "threads=1", "wandb.mode=disabled", "task.lengths=[300]"]
SETTINGS += ["task.max_new_tokens=6", "limit=2", "budgets=[0.2,0.5]"]


def run(folder, methods, *overrides):
    """A run's folder and rows by key."""
    asked = [*SETTINGS, f"method=[{methods}]", f"results={folder}", *overrides]
    done = runner.run(compose.composed(asked), figures=False)
    return done.folder, {key_of(row): row for row in read_rows(done.folder)}


@pytest.fixture
def measured(monkeypatch):
    """The cells, by sample, that are measured."""
    found, kind = [], KINDS["generate"]
    real = type(kind).rows

    def watched(self, engine, loaded, task, batch, protocol, meter):
        found.extend((item.sample.id, point.name, point.label) for item in batch for point in item.points)
        return real(self, engine, loaded, task, batch, protocol, meter)

    monkeypatch.setattr(type(kind), "rows", watched)
    return found


def test_a_method_added_later_is_all_that_is_measured(tmp_path, measured, capsys):
    first, before = run(tmp_path / "a", "h2o")
    measured.clear()
    second, after = run(tmp_path / "a", "h2o,random")
    assert second != first
    assert {name for _, name, _ in measured} == {"random"} and len(measured) == 2 * 2
    assert f"6 rows are taken from {first.name}" in capsys.readouterr().err
    for key, row in before.items():
        assert after[key] == {**row, "measured_in": first.name}
    measured.clear()
    _, fresh = run(tmp_path / "a", "h2o,random,knorm", "reuse=false")
    assert len(measured) == 2 * 7 and not any("measured_in" in row for row in fresh.values())
    _, alone = run(tmp_path / "b", "h2o,random")
    assert alone.keys() == after.keys()
    for key, row in alone.items():
        assert row_differences(row, after[key], None)[0] == []


def test_a_row_names_the_run_that_measured_it_however_often_it_is_taken(tmp_path):
    first, _ = run(tmp_path, "h2o")
    run(tmp_path, "h2o,random")
    _, rows = run(tmp_path, "h2o,knorm")
    assert {row["measured_in"] for row in rows.values() if row["method"] in ("h2o", "full")} == {first.name}


@pytest.mark.parametrize(
    "change, taken",
    [
        (["seed=1"], set()),
        (["dtype=float32"], set()),
        (["query_aware=false"], set()),
        (["task.max_new_tokens=7"], set()),
        (["engine.chunk=64"], set()),
        (["methods.h2o.normalize=true"], {"full"}),
        (["budgets=[0.2,0.4]"], {"full", "h2o"}),
        (["limit=3"], {"full", "h2o"}),
        (["task.repeats=5", "limit=4"], {"full", "h2o"}),
        (["task.depths=[0, 50]"], set()),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_would_change_a_number_is_measured(tmp_path, measured, change, taken):
    _, before = run(tmp_path, "h2o")
    measured.clear()
    _, after = run(tmp_path, "h2o,random", *change)
    found = {key for key, row in after.items() if "measured_in" in row}
    assert {name for _, name, _ in found} == taken
    assert found <= before.keys() and found | set(measured) == after.keys() and not found & set(measured)


def test_rows_that_are_no_results_are_not_taken_and_broken_runs_are_passed_over(tmp_path, measured, capsys):
    first, before = run(tmp_path, "h2o")
    lines = (first / "rows.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    rows[0] |= {"error": "it failed", "score": None, "metrics": {}}
    rows[1].pop("schema")
    (first / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    measured.clear()
    run(tmp_path, "h2o,random")
    assert {key_of(rows[0]), key_of(rows[1])} < set(measured) and len(measured) == 4 + 2
    (first / "rows.jsonl").write_text("no row\n")
    _, after = run(tmp_path, "h2o,knorm")
    assert "nothing is taken from" in capsys.readouterr().err and after.keys() > before.keys()


@pytest.mark.parametrize(
    "asked",
    [
        ["task=needle", "task.lengths=[300,400]"],
        pytest.param(["task=ruler", "task.sets=[niah_single_1]", "task.lengths=[1024,1200]"], marks=pytest.mark.slow),
    ],
    ids=["needle", "ruler"],
)
def test_how_many_samples_there_are_changes_none_of_them(asked):
    """What a task declares as `counted` may not change a sample."""
    made = []
    for count in (2, 5):
        config = compose.composed(["model=random", *asked])
        task = building.build(config.task, "the task")
        for name in task.counted:
            task = building.build(compose.composed(["model=random", *asked, f"task.{name}={count}"]).task, "the task")
        task.prepare(building.build(config.model, "the model", device="cpu", dtype=None).prompter())
        made.append([(sample, task.encode(sample).ids) for sample in (task.sample(3, number) for number in range(4))])
        sizes = task.size(3)
        assert task.counted and sizes >= 4
    assert made[0] == made[1]


def test_speeds_are_measured_anew(tmp_path):
    few = ["task=throughput", "task.prompts=[64]", "task.new_tokens=[4]", "task.repeats=1"]
    short = [one for one in SETTINGS if not one.startswith(("task.", "limit"))]
    for methods in ("h2o", "h2o,random"):
        asked = [*short, *few, f"method=[{methods}]", f"results={tmp_path}"]
        done = runner.run(compose.composed(asked), figures=False)
        assert not any("measured_in" in row for row in read_rows(done.folder))


class Numbered(Needle):
    """A task of one's own whose prompts are the same with more repeats, and whose scores are not."""

    def score(self, sample, output):
        return {"accuracy": 1 / self.repeats}


def test_a_task_that_derives_from_another_declares_for_itself(tmp_path):
    """What a setting changes in a class of one's own is not known from its base."""
    rows = []
    for repeats, methods in ((1, "h2o"), (3, "h2o,random")):
        task = Numbered(lengths=[300], repeats=repeats, max_new_tokens=4)
        asked = compose.composed([*SETTINGS, f"method=[{methods}]", f"results={tmp_path}"])
        rows.append(read_rows(runner.run(asked, task=task, figures=False).folder))
    assert not any("measured_in" in row for row in rows[1])


def test_other_weights_and_altered_runs_give_nothing(tmp_path, capsys):
    first, _ = run(tmp_path, "h2o")
    path = first / "environment.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps(whole | {"model": whole["model"] | {"loaded_sha256": "0" * 64}}))
    _, after = run(tmp_path, "h2o,random")
    assert not any("measured_in" in row for row in after.values())
    assert "was measured with other weights" in capsys.readouterr().err
    path.write_text(json.dumps(whole))
    config = (first / "config.yaml").read_text()
    (first / "config.yaml").write_text(config.replace("refeed_last: false", "refeed_last: true", 1))
    _, after = run(tmp_path, "h2o,knorm", "refeed_last=true")
    assert not any("measured_in" in row for row in after.values())
    assert "was altered" in capsys.readouterr().err


def test_rows_of_other_prompts_are_not_taken(tmp_path, measured):
    first, _ = run(tmp_path, "h2o")
    rows = [json.loads(line) for line in (first / "rows.jsonl").read_text().splitlines()]
    rows[0]["prompt_sha256"] = "0" * 64
    (first / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    measured.clear()
    run(tmp_path, "h2o,random")
    assert key_of(rows[0]) in measured and len(measured) == 4 + 1


def test_a_run_of_taken_rows_alone_says_what_it_did(tmp_path, measured):
    run(tmp_path, "h2o,random")
    measured.clear()
    config = compose.composed([*SETTINGS, "method=[h2o]", f"results={tmp_path}"])
    assert runner.run(config, figures=False).measured == 2 * 3 and not measured
    assert runner.run(config, figures=False).measured == 0
