"""What a run says last: the verdict in words, what it rests on, and commands that really run."""

import gc
import shlex

import pandas as pd
import pytest

from pvcbench.cli import closing
from pvcbench.cli.main import main
from pvcbench.cli.run import told_of
from pvcbench.runs.result import Result
from pvcbench.runs.rows import load_table
from pvcbench.stats import perplexity
from rows import needle_rows, write_run


@pytest.fixture
def result(tmp_path):
    write_run(tmp_path / "grid" / "abc", needle_rows(repeats=6, methods=("full", "pvc", "h2o", "random")))
    rows = load_table(tmp_path / "grid")
    summary, parts = perplexity.tables(rows, tmp_path)
    (folder,) = rows["folder"].unique()
    return Result(tmp_path / "grid" / str(folder).rpartition("/")[2], rows, summary, parts, [], None, 0)


def test_the_verdict_names_sizes_and_what_it_rests_on(result):
    *sizes, last = closing.sentences(result)
    assert sizes and all(line.startswith("At ") and "% of the cache: " in line for line in sizes)
    assert f"rests on {result.rows['sample'].nunique()} samples of one task and one model" in last
    assert not any("random" in line.partition(": ")[2] for line in sizes)


def test_one_method_alone_is_compared_with_nothing(result):
    result.rows = result.rows[result.rows["method"].isin(["full", "h2o"])]
    result.summary = result.summary[result.summary["method"].isin(["full", "h2o"])]
    assert closing.sentences(result) == []
    assert "compare" not in "".join(closing.next_lines(result, []))


def test_a_run_without_scores_says_nothing(result):
    result.summary = result.summary.drop(columns="score")
    assert closing.sentences(result) == [] and closing.next_lines(result, []) == []


WORDS = ["--config-dir", "my study", "method=[pvc,h2o]", "task=jsonl", "model=random", "+model.seed=1", "limit=3"]


def test_the_commands_are_commands(result, capsys):
    lines = closing.next_lines(result, WORDS)
    assert len(lines) == 3
    commands = [shlex.split(line.removeprefix("next").strip().partition("  ")[0]) for line in lines]
    assert [command[0] for command in commands] == ["pvcbench"] * 3
    assert main(commands[1][1:]) == 0, capsys.readouterr().err
    assert "h2o" in capsys.readouterr().out
    kept = ["--config-dir", "my study", "method=[pvc,h2o]", "task=jsonl", "limit=3"]
    assert commands[2] == ["pvcbench", *kept, "model=hf", "model.name=ORG/NAME"]


def test_what_is_told_keeps_no_garbage(result, capsys):
    """In a multirun the next run's memory is measured in the same process."""
    assert told_of(result) == 0 and "this rests on" in capsys.readouterr().out.lower()
    assert gc.get_freeze_count() == 0


def test_of_a_multirun_no_command_is_repeated(result):
    assert len(closing.next_lines(result, None)) == 2


def test_what_is_compared_is_where_scores_lie_furthest_apart():
    line = {"complete": True, "reference": False, "leaks": False}
    scores = {("a", "0.1"): 0.5, ("b", "0.1"): 0.4, ("a", "0.5"): 0.2, ("b", "0.5"): 0.9, ("random", "0.1"): 0.0}
    table = pd.DataFrame([line | {"method": m, "budget": b, "score": score} for (m, b), score in scores.items()])
    assert closing.widest(table, {"random"}) == ("b", "a", "0.5")
    assert closing.widest(table.assign(score=1.0), {"random"}) is None
