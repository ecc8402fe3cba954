"""The examples run from any folder and print what their docstrings promise."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = {path.stem: path for path in sorted((ROOT / "examples").glob("*.py"))}


def printed(name, folder):
    """The lines that an example prints, run in a folder of its own."""
    known = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, EXAMPLES[name]]
    done = subprocess.run(command, cwd=folder, env=known, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert list((folder / "example_results").rglob("rows.jsonl"))
    return done.stdout.splitlines()


def cells(lines):
    """Method, budget and the numbers after them, of the first table that was printed."""
    return {tuple(line.split()[:2]): [float(x) for x in line.split()[2:]] for line in lines if line.count(".") > 1}


def test_there_are_three():
    assert set(EXAMPLES) == {"compare_two_methods", "own_method", "own_task"}


@pytest.mark.slow
def test_two_methods_are_compared(tmp_path):
    lines = printed("compare_two_methods", tmp_path)
    table = cells(lines[: lines.index("")])
    assert {method for method, _ in table} == {"full", "h2o", "streaming_llm"} and len(table) == 5
    assert table["full", "1.0"][:2] == [1.0, 1.0]  # all is kept, and every prompt answered
    assert all(abs(kept - float(budget)) < 0.01 for (_, budget), (kept, *_) in table.items())
    assert lines[lines.index("") + 1].startswith("Scores of each prompt")
    assert len([line for line in lines if line.startswith("0-")]) == 3


@pytest.mark.slow
def test_a_method_of_your_own_is_measured(tmp_path):
    table = cells(printed("own_method", tmp_path))
    assert {method for method, _ in table} == {"full", "large_values", "h2o"} and len(table) == 5
    assert all(abs(kept - float(budget)) < 0.01 for (_, budget), (kept, *_) in table.items())


@pytest.mark.slow
def test_a_task_of_your_own_is_measured(tmp_path):
    lines = printed("own_task", tmp_path)
    table = cells(lines[: lines.index("")])
    assert set(table) == {("full", "1.0"), ("h2o", "0.25"), ("h2o", "0.5")}
    shares = {tuple(line.split()[:2]): float(line.split()[2]) for line in lines if line.startswith("full ")}
    assert shares["full", "1.0"] == 1.0


def test_a_method_takes_fifteen_lines_at_most():
    tree = ast.parse(EXAMPLES["own_method"].read_text(encoding="utf-8"))
    [method] = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    assert method.end_lineno - method.decorator_list[0].lineno + 1 <= 15


@pytest.mark.parametrize("path", EXAMPLES.values(), ids=EXAMPLES)
def test_examples_use_the_public_api_alone(path):
    allowed = {"pvcbench"} | ({"pvcbench.policy"} if path.stem == "own_method" else set())
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        assert not [name for name in names if name.startswith("pvcbench") and name not in allowed]
