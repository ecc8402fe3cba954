"""What a setting cannot be is told by its key, its value and what it takes, whatever the class makes of it."""

import dataclasses

import pytest

from pvcbench.cli.main import main as command
from pvcbench.config import building, moved
from pvcbench.config.building import build
from pvcbench.config.compose import composed
from pvcbench.errors import UserError
from pvcbench.runs.spec import RunSpec

BASE = ["model=random", "method=h2o", "threads=1"]
TEXTS = {
    "methods.pvc.recent_ratio": (["method=pvc"], "a number"),
    "methods.h2o.normalize": ([], "true or false"),
    "model.seed": ([], "a whole number"),
    "task.repeats": ([], "a whole number"),
}


@pytest.mark.parametrize(("key", "more"), [(key, more) for key, (more, _) in TEXTS.items()], ids=TEXTS)
def test_text_in_the_place_of_a_number_is_named(key, more, tmp_path, capsys):
    assert command([*BASE, *more, f"{key}=abc", f"results={tmp_path}"]) == 2
    assert f"{key} must be {TEXTS[key][1]}" in (line := capsys.readouterr().err) and "'abc'" in line
    assert line.count("\n") == 1


@dataclasses.dataclass(frozen=True)
class Fussy:
    """Takes nothing but its own mood."""

    mood: object = None

    def __post_init__(self):
        if self.mood == "index":
            raise IndexError("no such mood")
        raise ZeroDivisionError


@pytest.mark.parametrize(("mood", "kind"), [("index", "IndexError: no such mood"), ("zero", "ZeroDivisionError")])
def test_whatever_a_class_raises_names_key_and_class(mood, kind):
    with pytest.raises(UserError, match=rf"\(methods.fussy, {__name__}.Fussy\): {kind}"):
        build({"_target_": f"{__name__}.Fussy", "mood": mood}, "method fussy")


def test_an_old_place_of_an_inner_class_is_found(monkeypatch):
    monkeypatch.setitem(moved.MOVED, "old.place.Snap", "methods.snapkv.SnapKV")
    building.load_methods_package()
    node = dict(composed(["method=ada_snapkv"]).methods.ada_snapkv)
    assert type(build(node, "method x").base).__name__ == "SnapKV"
    old = {**node, "base": {"_target_": "old.place.Snap"}}
    assert type(build(old, "method x").base).__name__ == "SnapKV"


@pytest.mark.parametrize("words", [["method=[]"], ["method="], ["--multirun", "method=[],h2o"]])
def test_no_method_at_all_is_refused(words, tmp_path, capsys):
    assert command(["model=random", f"results={tmp_path}", *words]) == 2
    assert "write method=full" in capsys.readouterr().err


def test_the_configuration_is_shown_by_one_word_only(capsys):
    assert command([*BASE, "--cfg", "foo"]) == 2 and "choose from" in capsys.readouterr().err
    assert command([*BASE, "--cfg", "job"]) == 0


@pytest.mark.parametrize("words", [["--time", "xx"], ["--gpus", "-1"], ["--warning", "0"], ["--array-limit", "0"]])
def test_a_sweeps_resources_are_checked_before_they_are_shown(words, tmp_path, capsys):
    asked = ["sweep", "submit", "x", *BASE, f"results={tmp_path}", "--dry-run"]
    assert command([*asked, *words]) == 2
    assert words[0] in capsys.readouterr().err
    for time in ("30", "30:00", "4:00:00", "1-12", "1-12:30:00", "UNLIMITED"):
        assert command([*asked, "--time", time]) == 0


def test_order_and_repetition_of_budgets_change_no_id():
    def identity(budgets):
        spec = RunSpec.of(composed([*BASE, f"budgets={budgets}"]))
        return spec.identity(spec.load())["budgets"]

    assert identity("[0.5,64,0.25,0.5]") == identity("[64,0.25,0.5]") == ["64", "0.25", "0.5"]
