"""What stands in a results folder and is no run's own: copies, foreign rows, numbers that are none, torn files."""

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

import pvcbench
from pvcbench.cli.main import main as command
from pvcbench.config import compose
from pvcbench.errors import UserError
from pvcbench.models import random_weights
from pvcbench.report import compare_methods, html_page
from pvcbench.runs import runner
from pvcbench.runs.folder import RunFolder
from pvcbench.runs.rows import load_table, read_rows, run_folders
from pvcbench.runs.run_id import run_id
from pvcbench.runs.stored import stored
from rows import needle_rows, write_run

MADE = needle_rows(repeats=1, methods=("full", "h2o"), budgets=(0.25, 0.5))
IDENTITY = {"model": {"name": "m"}, "seed": 0, "task": {"name": "needle"}, "methods": {"full": {}, "h2o": {}}}
IDENTITY |= {"budgets": ["0.25", "0.5"]}
RUN = run_id(IDENTITY)


@pytest.fixture
def folder(tmp_path):
    """The folder of one run of the experiment `e`."""
    write_run(tmp_path / "r" / "e" / RUN, MADE, IDENTITY)
    return tmp_path / "r" / "e" / RUN


def opened(folder, identity=None):
    """The rows that the runner finds when it goes on."""
    made = RunFolder(folder.parent.parent, folder.parent.name, identity or IDENTITY)
    try:
        return made.open({"task": {}}, {})
    finally:
        made.close()


def replaced(path, line, **changes):
    """Changes one row of a file."""
    lines = path.read_text().splitlines()
    lines[line - 1] = json.dumps(json.loads(lines[line - 1]) | changes)
    path.write_text("\n".join(lines) + "\n")


# ------------------------------------------------------------------------------------------------------------- copies


@pytest.mark.parametrize("place", ["e/copy", "saved/e/0123456789ab"])
def test_a_copied_run_does_not_count_twice(folder, place, capsys):
    results = folder.parent.parent
    shutil.copytree(folder, results / place)
    for read in (load_table, run_folders, lambda path: html_page.build(path, 1), pvcbench.load):
        with pytest.raises(UserError, match=r"the same run.*move the other out") as said:
            read(results)
        assert str(folder) in str(said.value) and str(results / place) in str(said.value)
    for words in (["figures", results, "--check"], ["rescore", results], ["report", results, "--out", results / "x"]):
        assert command([str(word) for word in words]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_a_run_compared_with_its_copy_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "other" / "e" / RUN)
    with pytest.raises(UserError, match="the same run"):
        compare_methods.compare([folder.parent.parent, tmp_path / "other"], "h2o", ["h2o@0.5"])


def test_the_same_run_in_two_experiments_and_a_moved_one_are_no_copies(folder, tmp_path):
    results = folder.parent.parent
    shutil.copytree(folder, results / "again" / RUN)
    assert len(load_table(results)) == 2 * len(MADE)
    assert set(load_table(results)["experiment"]) == {"e", "again"}
    shutil.copytree(folder, tmp_path / "downloaded")  # as W&B's artifact, whose folder has a name of its own
    assert len(load_table(tmp_path / "downloaded")) == len(MADE)


def test_what_else_lies_in_results_is_no_run(folder):
    wandb = folder / "wandb" / "offline-run-1" / "artifact"
    wandb.mkdir(parents=True)
    for name in ("rows.jsonl", "config.yaml"):
        shutil.copyfile(folder / name, wandb / f"{name}.copy")
    report = folder.parent.parent / "report"
    report.mkdir()
    (report / "index.html").write_text("<p>rows</p>")
    shutil.make_archive(str(report / "packed"), "zip", folder)
    assert len(load_table(folder.parent.parent)) == len(MADE)


def test_the_experiment_is_named_from_inside_a_run(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert set(load_table(".")["experiment"]) == {"e"}


# ------------------------------------------------------------------------------------------------------- foreign rows

ROWS = {
    "method": {"method": "other"},
    "budget": {"budget": "0.3"},
    "task": {"task": "longbench"},
}


@pytest.mark.parametrize("changes", ROWS.values(), ids=ROWS)
def test_rows_of_another_run_are_refused(folder, changes):
    replaced(folder / "rows.jsonl", 5, **changes)
    for read in (load_table, read_rows, opened):
        with pytest.raises(UserError, match=r"rows.jsonl, line 5 is a row of .*cannot have.*: delete the line"):
            read(folder)


def test_a_size_of_a_methods_own_is_no_foreign_budget(tmp_path):
    made = [row | ({"budget": "r=0.8"} if row["method"] == "h2o" else {}) for row in MADE[:2]]
    write_run(tmp_path / "e" / "x", made, IDENTITY)
    assert len(load_table(tmp_path)) == 2


BROKEN = {
    "nan": ({"score": float("nan")}, "NaN is no number"),
    "inside": ({"metrics": {"accuracy": float("inf")}}, "Infinity is no number"),
    "text": ({"score": "1.0"}, "its score cannot be"),
    "list": ({"method": ["h2o"]}, "its method cannot be"),
    "number": ({"budget": 0.25}, "its budget cannot be"),
}


@pytest.mark.parametrize(("changes", "says"), BROKEN.values(), ids=BROKEN)
def test_a_row_of_values_that_are_none_is_refused(folder, changes, says):
    replaced(folder / "rows.jsonl", 3, **changes)
    for read in (load_table, read_rows, opened):
        with pytest.raises(UserError, match=rf"rows.jsonl, line 3 is not a row .*{says}"):
            read(folder)


def test_a_number_beyond_all_floats_is_refused(folder):
    path = folder / "rows.jsonl"
    path.write_text(
        path.read_text().replace('"score": 1.0', '"score": 1e999').replace('"score": 0.0', '"score": 1e999')
    )
    with pytest.raises(UserError, match=r"line 1 is not a row .*1e999 is no number"):
        load_table(folder)


@pytest.mark.parametrize("text", ['{"sample":"0-0","method":"h2o","budget":"0.5"}\n', "[1]\n", "[" * 100000 + "\n"])
def test_lines_that_are_no_rows_are_named(folder, text):
    (folder / "rows.jsonl").write_text(text)
    for read in (load_table, read_rows, opened):
        with pytest.raises(UserError, match=r"rows.jsonl, line 1 is not a row"):
            read(folder)


def test_a_folder_in_the_place_of_the_rows_is_named(folder, capsys):
    (folder / "rows.jsonl").unlink()
    (folder / "rows.jsonl").mkdir()
    for read in (load_table, read_rows, opened):
        with pytest.raises(UserError, match=r"rows.jsonl cannot be read \(Is a directory\)"):
            read(folder)
    assert command(["report", str(folder.parent.parent)]) == 2 and capsys.readouterr().err.count("\n") == 1


# -------------------------------------------------------------------------------------------------------- config.yaml


@pytest.mark.parametrize("share", [0, 0.3, 0.99])
def test_a_torn_configuration_is_written_again(folder, share, capsys):
    path = folder / "config.yaml"
    whole = path.read_text()
    path.write_text(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=r"config.yaml.*the same command as before writes it again, and the rows stay"):
        load_table(folder.parent)
    assert len(opened(folder)) == len(MADE)
    assert "is written again" in capsys.readouterr().err
    assert stored(folder) == {"run": RUN, "identity": IDENTITY, "config": {"task": {}}}
    assert len(load_table(folder.parent)) == len(MADE)


def test_a_missing_configuration_is_told_with_what_to_do(folder):
    (folder / "config.yaml").unlink()
    with pytest.raises(
        UserError, match=r"no readable config.yaml: name the folder of one run; where a run has lost it"
    ):
        load_table(folder.parent)


ALTERED = {
    "run": {"run": "0123456789ab"},
    "identity": {"identity": IDENTITY | {"seed": 1}},
    "both": {"run": run_id(IDENTITY | {"seed": 1}), "identity": IDENTITY | {"seed": 1}},
}


@pytest.mark.parametrize("name", ALTERED)
def test_an_altered_identity_is_refused_before_a_run_goes_on(folder, name):
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | ALTERED[name]))
    with pytest.raises(UserError, match=r"config.yaml was altered: its identity does not give the id .*: put the"):
        opened(folder)
    if name != "both":
        with pytest.raises(UserError, match="was altered"):
            load_table(folder.parent)


# ------------------------------------------------------------------------------------------------- when a run goes on


def test_rows_that_the_run_cannot_have_are_named_when_it_goes_on(tmp_path, capsys):
    words = ["model=random", "method=h2o", "task.lengths=[300]", "budgets=[0.5]", "task.max_new_tokens=2", "threads=1"]
    words += ["wandb.mode=disabled", f"results={tmp_path}", "task.repeats=1", "limit=2"]
    config = compose.composed(words)
    path = runner.run(config, figures=False).folder / "rows.jsonl"
    whole = path.read_text()
    for changes in ({"sample": "9-9"}, {"method": "full", "budget": "0.5"}):
        path.write_text(whole)
        replaced(path, 2, **changes)
        for limit in ("limit=1", "limit=2"):
            assert command([*words, limit]) == 2
            assert f"{path}, line 2 is a row of" in capsys.readouterr().err
    path.write_text(whole)
    config.limit = 1  # rows of an earlier, larger limit are the run's
    assert runner.run(config, figures=False).measured == 0


def test_a_run_does_not_go_on_with_other_weights_under_its_id(folder):
    def open_with(environment):
        made = RunFolder(folder.parent.parent, "e", IDENTITY)
        try:
            made.open({}, environment)
        finally:
            made.close()

    first = {"model": {"loaded_sha256": "a", "elements_per_tensor": 8}, "packages": {"transformers": "5.0"}}
    open_with(first)
    open_with(first)
    open_with({})  # tells nothing that could be held against it
    with pytest.raises(UserError, match=r"other weights .*transformers: 5.0 then, 5.1 now.*experiment=NAME"):
        open_with({"model": {"loaded_sha256": "b", "elements_per_tensor": 8}, "packages": {"transformers": "5.1"}})


def test_threads_that_draw_weights_at_once_draw_the_same(monkeypatch):
    real = random_weights.AutoModelForCausalLM.from_config

    def slow(*args, **options):
        time.sleep(0.05)  # in which another thread could set the seed anew or draw
        return real(*args, **options)

    monkeypatch.setattr(random_weights.AutoModelForCausalLM, "from_config", slow)
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda seed: random_weights.random("tiny", "cpu", None, seed).made, [1, 2, 1, 2]))
    assert made[0] == made[2] != made[1] == made[3]
