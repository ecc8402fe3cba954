"""Every command in README.md, CONTRIBUTING.md and the guide is one that can be given, and README's example runs."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pvcbench.cli import main
from pvcbench.config import compose, settings
from pvcbench.errors import UserError
from pvcbench.sweeps.manifest import combinations

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [path for path in PAGES if path.name != "log.md"]  # the log names commands of its day
OURS = re.compile(r"^(?:\S*python3? -m pvcbench|(?:\S*/)?pvcbench)(?= |$)")
SCRIPT = re.compile(r"^(?:\S*/)?python scripts/(\w+\.py)")


def blocks(text):
    """The lines of code in a page: of fenced blocks that are no other language, and indented ones."""
    fence, inside = None, []
    for line in text.splitlines():
        if line.startswith("```"):
            fence = None if fence is not None else line[3:].strip()
        elif fence in ("", "sh", "bash") or (fence is None and line.startswith("    ")):
            inside.append(line.strip())
    return "\n".join(inside).replace("\\\n", " ").splitlines()


def commands():
    """Every command of ours with the page that has it, without the comment behind it."""
    for path in PAGES:
        for line in blocks(path.read_text(encoding="utf-8")):
            words = shlex.split(line, comments=True) if OURS.match(line) else []
            if words:
                yield path.relative_to(ROOT).as_posix(), words[3 if "pvcbench" not in words[0] else 1 :]


COMMANDS = list(commands())


def test_there_are_many():
    assert len(COMMANDS) > 60 and {"README.md", "docs/guide/tasks.md"} <= {page for page, _ in COMMANDS}


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=[f"{page}: {' '.join(words)}" for page, words in COMMANDS])
@pytest.mark.sampled(30)
def test_a_command_can_be_given(page, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check(words, tmp_path)


@pytest.mark.parametrize(
    "line", ["taks=needle", "task=needles", "method=h2o task.lenghts=[64]", "compare results --method"]
)
def test_a_mistake_would_be_found(line, tmp_path):
    with pytest.raises((UserError, SystemExit)):
        check(shlex.split(line), tmp_path)


def check(words, tmp_path):
    """Reads the arguments of a command, and composes and checks the settings of a run; nothing is run."""
    if words == ["--help"]:
        assert main.main(words) == 0
        return
    name, rest = (words[0], words[1:]) if words and words[0] in main.COMMANDS else ("run", words)
    asked = main.asked_of(main.module(name), rest)
    overrides = [word for word in getattr(asked, "overrides", []) if not word.startswith("hydra")]
    if overrides:
        placed = [place_of_mine(folder, tmp_path) for folder in folders_of(asked)]
        for one in combinations(overrides, placed):
            settings.check(compose.composed(one, placed))


def folders_of(asked):
    """The configuration folders that a command names."""
    named = getattr(asked, "config_dir", None) or []
    return [named] if isinstance(named, str) else named


def place_of_mine(name, tmp_path):
    """A folder of somebody's own method and task, as the guide describes it."""
    folder = tmp_path / name
    for group, own, head in (("method", "mine", "# @package methods.mine\n"), ("task", "towns", "")):
        (folder / group).mkdir(parents=True, exist_ok=True)
        (folder / group / f"{own}.yaml").write_text(f"{head}_target_: mine.Mine\n")
    return str(folder)


def test_scripts_that_pages_name_exist():
    named = {
        found[1]
        for path in PAGES
        for line in blocks(path.read_text(encoding="utf-8"))
        if (found := SCRIPT.match(line.strip()))
    }
    assert named and not [name for name in named if not (ROOT / "scripts" / name).is_file()]


def python_blocks(path):
    """The Python blocks of a page."""
    return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.slow
def test_readmes_method_is_short_and_runs(tmp_path):
    [block] = python_blocks(ROOT / "README.md")
    assert len([line for line in block.splitlines() if line.strip()]) <= 15
    (tmp_path / "mine.py").write_text(block)
    known = os.environ | {"PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled"}
    done = subprocess.run(
        [sys.executable, "mine.py"], cwd=tmp_path, env=known, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "large_values" in done.stdout and "full" in done.stdout


@pytest.mark.slow
def test_the_guides_task_runs(tmp_path):
    [block] = python_blocks(ROOT / "docs/guide/own_task.md")
    (tmp_path / "mine.py").write_text(block)
    known = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "mine.py"], cwd=tmp_path, env=known, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "h2o" in done.stdout


def test_the_guides_method_is_the_one_that_is_there():
    shown = python_blocks(ROOT / "docs/guide/own_method.md")[0]
    assert "class Knorm(Method)" in shown and "return -seen.keys.norm(dim=-1)" in shown
    source = (ROOT / "methods/knorm.py").read_text(encoding="utf-8")
    assert "class Knorm(Method)" in source and "return -seen.keys.norm(dim=-1)" in source
