"""Experiments by name: each composes, says what it costs and compares with, and runs in small as its header says."""

import json
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest
import yaml

from pvcbench.cli import main
from pvcbench.config import building, compose
from pvcbench.plots import published
from pvcbench.runs import identity, runner
from pvcbench.runs.run_id import run_id
from pvcbench.runs.spec import RunSpec

ROOT = Path(__file__).parents[2]
NAMES = compose.options("experiment")
WANTED = "demo quickstart needle_grid longbench_table ruler_4k perplexity_pg19 attention_patterns_80k".split()
WANTED += ["pyramidinfer_throughput", "pyramidinfer_figures", "methods_needle", "methods_needle_agnostic"]
WANTED += [
    "methods_perplexity",
    "methods_ruler",
    "reasoning",
    "ruler_4k_aware",
    "ruler_4k_hub",
    "ruler_8k",
    "ruler_16k",
]


def header(name):
    """The comment at the top of an experiment's file."""
    lines = (compose.CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return [line[2:] for line in lines[: next(n for n, line in enumerate(lines) if not line.startswith("#"))]]


def small_form(name):
    """The overrides of the last command in a header."""
    text = "\n".join(header(name)).replace("\\\n", " ")
    return shlex.split([line for line in text.splitlines() if "python -m pvcbench" in line][-1])[3:]


def test_all_are_there():
    assert set(WANTED) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_composes_and_says_what_it_costs_and_compares_with(name):
    assert compose.composed([f"+experiment={name}"]).experiment == name
    text = " ".join(header(name))
    assert text.startswith("@package _global_") and "Cost:" in text
    files = re.findall(r"data/published/(\w+\.csv)", text)
    assert files or "Published numbers: none" in text
    assert all((published.FOLDER / file).is_file() for file in files)
    assert "GPU" in text and ("not measured" in text or "no GPU" in text)
    assert compose.composed(small_form(name)).experiment == name


@pytest.mark.parametrize("name", NAMES)
def test_each_is_a_run_whose_methods_can_do_what_it_asks(name):
    """What a method cannot do under a protocol is refused: no experiment may ask for such a thing."""
    if "ruler" in name:
        pytest.importorskip("lm_eval")
    if name == "reasoning":
        pytest.importorskip("reasoning_gym")
    assert RunSpec.of(compose.composed([f"+experiment={name}", "device=cpu"])).points


def test_the_list_and_the_page_name_them(capsys):
    assert main.main(["list"]) == 0
    shown, page = capsys.readouterr().out, (ROOT / "docs" / "reference" / "experiments.md").read_text(encoding="utf-8")
    for name in NAMES:
        assert name in shown and f"`{name}`" in page


def test_every_published_file_belongs_to_an_experiment():
    named = {file for name in NAMES for file in re.findall(r"data/published/(\w+\.csv)", " ".join(header(name)))}
    assert named == {path.name for path in published.FOLDER.glob("*.csv")}


def test_the_quickstart_is_the_committed_run(monkeypatch):
    """The same settings and the same id, but for the model's own part, which needs the model."""
    stored = yaml.safe_load((ROOT / "results/quickstart/a9b99b9e9929/config.yaml").read_text(encoding="utf-8"))
    made = compose.composed(["+experiment=quickstart", "device=cpu"])
    task, methods = building.build(made.task, "the task"), building.build_methods(made.methods)
    monkeypatch.setattr(identity, "of_model", lambda loaded: stored["identity"]["model"])
    found = json.loads(json.dumps(RunSpec.of(made, task, methods).identity(None)))
    assert run_id(stored["identity"]) == stored["run"] == "a9b99b9e9929"
    assert found == stored["identity"]


def run_small(name, tmp_path, *more):
    """The small form of a header on the tiny random model."""
    asked = [one.replace("model=smollm2", "model=random") for one in small_form(name)]
    common = ["threads=1", "wandb.mode=disabled", f"results={tmp_path / 'results'}"]
    result = runner.run(compose.composed([*asked, *common, *more]), figures=False)
    assert result.folder.parent == tmp_path / "results" / name and result.measured == len(result.rows) > 0
    lost = result.rows[result.rows["error"].notna()]
    assert lost["reason"].eq("out of reach").all(), lost["error"].unique()
    return result


SMALL = {
    "demo": ["budgets=[0.25]", "limit=1"],
    "quickstart": ["budgets=[0.25,0.75]", "limit=1"],
    "needle_grid": ["limit=3"],
    "perplexity_pg19": ["task.tokens=400", "task.documents=1"],
    "attention_patterns_80k": ["limit=1"],
    "pyramidinfer_figures": [],
    "methods_needle": ["limit=1"],
    "methods_needle_agnostic": ["limit=1"],
    "methods_perplexity": ["limit=1"],
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.sampled(4)
def test_each_runs_in_small(name, tmp_path):
    result = run_small(name, tmp_path, *SMALL[name])
    methods = set(compose.composed([f"+experiment={name}"]).methods)
    seen = set(result.rows["method"].dropna())
    assert seen <= methods and (result.rows["method"].isna().all() or seen >= methods - {"full"})


@pytest.mark.parametrize("task", ["attention_consistency", "pivotal_roles"])
def test_the_figures_of_pyramidinfer_are_three_tasks(task, tmp_path):
    result = run_small("pyramidinfer_figures", tmp_path, f"task={task}", "limit=1")
    assert set(result.rows["task"]) == {task}


def test_one_set_of_longbench_in_small(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    text = "The council met on Tuesday and agreed on a new bridge over the river. " * 30
    item = {"input": "", "context": text, "answers": ["A new bridge was agreed on."], "length": 400}
    item |= {"dataset": "multi_news", "language": "en", "all_classes": None, "_id": "0"}
    (data / "multi_news.jsonl").write_text(json.dumps(item) + "\n", encoding="utf-8")
    pytest.importorskip("rouge")
    made = [one.replace("FOLDER", str(data)) for one in small_form("longbench_table")]
    assert f"task.data_dir={data}" in made
    more = [f"task.data_dir={data}", "limit=1", "budgets=[128]"]
    result = run_small("longbench_table", tmp_path, *more)
    assert set(result.rows["stratum"]) == {"multi_news"} and set(result.rows["budget"]) == {"1.0", "128"}


def test_drawn_answers_in_small_hold_their_size(tmp_path):
    pytest.importorskip("reasoning_gym")
    result = run_small("reasoning", tmp_path, "limit=1", "task.max_new_tokens=80", "budgets=[80]")
    cut = result.rows[result.rows["method"] != "full"]
    assert set(cut["draw"]) == {0, 1} and cut["problem"].nunique() == 1
    assert cut["decoding_entries_peak"].max() <= 80 + 64  # budget and interval
    table = pd.read_csv(result.folder / "answers.csv")
    assert {"avg@2", "pass@2", "truncated", "looping"} <= set(table) and set(table["lost"]) == {0}


def test_ruler_in_small_sees_the_question_after_compression(tmp_path):
    pytest.importorskip("lm_eval")
    more = ["task.sets=[vt]", "task.samples=1", "task.lengths=[3500]", "budgets=[0.75]"]
    result = run_small("ruler_4k", tmp_path, *more)
    assert all(not protocol["query_aware"] for protocol in result.rows["protocol"])
