"""`pvcbench new`: what it writes works as written, by the commands that it prints; names and files are checked."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pvcbench.cli import new
from pvcbench.cli.main import main
from pvcbench.tasks.qa.task import Qa

ROOT = Path(__file__).parents[2]
WRITTEN = {
    "method": ["mine.py", "method/mine.yaml", "test_mine.py"],
    "task": ["mine.py", "task/mine.yaml", "test_mine.py"],
    "data": ["data/mine.jsonl", "data/mine.yaml", "test_mine.py"],
}


@pytest.fixture(autouse=True)
def nothing_called_mine(monkeypatch):
    """Other tests of this process may have left folders with a `mine.py` on the path, or that module itself."""
    monkeypatch.setattr(sys, "path", [place for place in sys.path if not (Path(place or ".") / "mine.py").exists()])
    monkeypatch.delitem(sys.modules, "mine", raising=False)


def installed(folder):
    """pvcbench as a wheel lays it out, without the rest of the sources."""
    site, bare = folder / "site-packages", shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "pvcbench", site / "pvcbench", ignore=bare)
    for name in ("conf", "methods", "data/published"):
        shutil.copytree(ROOT / name, site / "pvcbench" / name, ignore=bare)
    return site


def environment(place):
    """Programs are found by their names, and the tests' own settings do not count."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    known = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    return known | {"PATH": path, "PYTHONPATH": str(place), "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}


def done(command, cwd, place, code=0):
    """What a command printed; it must end with this code."""
    made = subprocess.run(
        command, shell=True, cwd=cwd, env=environment(place), capture_output=True, text=True, timeout=600, check=False
    )
    assert made.returncode == code, (command, made.stdout, made.stderr)
    return made.stdout


def printed(text):
    """The commands that `new` tells to run next."""
    return [line.strip() for line in text.splitlines() if line.startswith("    ")]


def results(folder):
    return {path.parent.name for path in folder.rglob("rows.jsonl")}


WAYS = [(kind, how) for kind in WRITTEN for how in ("sources", "wheel")]  # each runs two to five commands
WAYS = [way if way == ("data", "sources") else pytest.param(*way, marks=pytest.mark.slow) for way in WAYS]


@pytest.mark.parametrize("kind, how", WAYS)
@pytest.mark.slow
def test_the_printed_commands_work(kind, how, tmp_path):
    """From the sources in the user's own folder; from a wheel in another folder, and with a blank in the name."""
    place = ROOT if how == "sources" else installed(tmp_path)
    cwd, more = (tmp_path / "work"), ("" if how == "sources" else " --dir '../my files'")
    cwd.mkdir()
    own = cwd if how == "sources" else tmp_path / "my files"
    said = done(f"pvcbench new {kind} mine{more}", cwd, place)
    assert sorted(path.relative_to(own).as_posix() for path in own.rglob("*") if path.is_file()) == sorted(
        WRITTEN[kind]
    )
    told = printed(said)
    assert len(told) == (3 if kind == "method" else 2) and told[-1].startswith("pvcbench ")
    for command in told:
        text = done(command, cwd, place)
        assert "mine is right: " in text or " passed" in text or "results/trial" in text
    assert len(results(cwd / "results" / "trial")) == 1
    if how == "sources" and kind == "method":
        code_counts(own / "mine.py", told[-1], cwd, place)


def code_counts(path, command, cwd, place):
    """The run id tells another method's code, and not another comment."""
    text = path.read_text()
    path.write_text(text.replace("norm(dim=-1)", "norm(p=1, dim=-1)  # the sum"))
    done(command, cwd, place)
    assert len(results(cwd / "results" / "trial")) == 2
    path.write_text(path.read_text().replace("# the sum", "# of all"))
    done(command, cwd, place)
    assert len(results(cwd / "results" / "trial")) == 2


def test_python_m_and_the_program_find_modules_of_the_current_folder_alike(tmp_path):
    (tmp_path / "here.py").write_text("class Nothing:\n    pass\n")
    text = "from pvcbench.cli.main import find_here; find_here(); import here; print(here.Nothing.__name__)"
    script = tmp_path / "bin" / "script.py"
    script.parent.mkdir()
    script.write_text(text)
    assert done(f"python {script}", tmp_path, ROOT) == "Nothing\n"
    assert "No module named 'here'" in safe(script, tmp_path)


def safe(script, cwd):
    """What Python says where it was told to keep the folder out."""
    command = [sys.executable, "-P", str(script)]
    made = subprocess.run(command, cwd=cwd, env=environment(ROOT), capture_output=True, text=True, check=False)
    assert made.returncode == 1
    return made.stderr


@pytest.mark.parametrize("kind, name, words", [
    ("method", "two words", "cannot be the name of a Python module"),
    ("method", "1st", "cannot be the name"),
    ("task", "class", "cannot be the name"),
    ("data", "été", "cannot be the name"),
    ("method", "../up", "cannot be the name"),
    ("method", "h2o", "there is a method h2o already"),
    ("task", "needle", "there is a task needle already"),
    ("data", "babilong", "there is a data babilong already"),
    ("method", "json", "the name of a Python module"),
    ("task", "torch", "the name of a Python module"),
    ("method", "methods", "the name of a Python module"),
    ("method", "true", "would be read as True"),
    ("method", "null", "would be read as None"),
])  # fmt: skip
def test_names_are_checked(kind, name, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["new", kind, name]) == 2
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1 and said.out == "" and not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.parametrize("number", range(3))
def test_no_file_is_overwritten(kind, number, tmp_path, capsys):
    there = tmp_path / WRITTEN[kind][number]
    there.parent.mkdir(exist_ok=True)
    there.write_text("mine")
    assert main(["new", kind, "mine", "--dir", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "already" in said and said.count("\n") == 1
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [there] and there.read_text() == "mine"


@pytest.mark.parametrize("place", ["", "methods", "conf", "conf/method", "pvcbench/cli"])
def test_nothing_is_written_into_pvcbench(place, capsys):
    assert main(["new", "method", "mine", "--dir", str(ROOT / place)]) == 2
    assert "is pvcbench's own" in capsys.readouterr().err and not (ROOT / place / "mine.py").exists()


def test_a_folder_that_hydra_takes_for_an_interpolation_is_refused(tmp_path, capsys):
    assert main(["new", "data", "mine", "--dir", str(tmp_path / "${x}")]) == 2
    assert "cannot read a folder with ${" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_said(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["new", "data", "mine", "--dir", str(tmp_path / "file")]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("name, kind", [
    ("mine", "Mine"), ("two_words", "TwoWords"), ("method", "OwnMethod"), ("none", "OwnNone"), ("keepAll", "KeepAll"),
])  # fmt: skip
def test_classes_are_named_after_their_modules(name, kind):
    assert new.class_of(name) == kind


@pytest.mark.parametrize("folder", ["a b", "$x", 'q"uote', "été", "back\\slash"])
def test_the_path_of_data_is_read_as_written(folder, tmp_path, capsys):
    place = tmp_path / folder
    assert main(["new", "data", "mine", "--dir", str(place)]) == 0
    made = Qa(data=str(place / "data" / "mine.yaml"))
    made.validate()
    assert made.size(0) == 4


def test_check_refuses_what_it_cannot_check(tmp_path, capsys, monkeypatch):
    """No such method, settings of something else, code that cannot be imported: one line and exit code 2."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert main(["new", "method", "mine", "--dir", str(tmp_path)]) == 0
    capsys.readouterr()
    (tmp_path / "mine.py").write_text("def :\n")
    own = ["--config-dir", str(tmp_path)]
    for arguments, words in (
        (["h2p"], "did you mean 'h2o'"),
        (["h2o", "seed=1"], "settings of the method alone"),
        (["h2o", "methods.h2o.normalise=true"], "unknown key"),
        (["mine", *own], "cannot build method mine"),
    ):
        assert main(["check", "method", *arguments]) == 2
        said = capsys.readouterr()
        assert words in said.err and said.err.count("\n") == 1 and said.out == "", said


def test_check_tells_the_failure_and_the_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert main(["new", "method", "broken", "--dir", str(tmp_path)]) == 0
    path = tmp_path / "broken.py"
    path.write_text(path.read_text().replace("norm(dim=-1)", "norm(dim=-1)[:, :1]"))
    capsys.readouterr()
    assert main(["check", "method", "broken", "methods.broken.newest=0.5", "--config-dir", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert said.err.startswith(f"pvcbench: broken: wrong shape: Broken.scores ({path}:") and said.err.count("\n") == 1
    assert "every answer" in said.out and "broken is wrong: 1 failed, 9 not run" in said.out
