"""Methods that name a file: what it holds is part of the run id, and what is wrong with it is said before a model."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pvcbench.config import building, compose
from pvcbench.errors import MethodError, UserError
from pvcbench.policy import Method, document, numbers, tensors
from pvcbench.runs import identity, spec


@dataclass(frozen=True)
class Reads(Method):
    """Scores by a file."""

    file: str | Path | None = None
    files = ("file",)

    def scores(self, seen):
        return seen.positions.double() * tensors(self.file)["w"][0]


@dataclass(frozen=True)
class Around(Method):
    base: Method

    def scores(self, seen):
        return self.base.scores(seen)


@dataclass(frozen=True)
class Forgets(Reads):
    def __post_init__(self):
        pass


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"w": torch.ones(1)}, path)
    return path


def test_another_content_is_another_run(file):
    """The id holds the name and the hash of what the file holds, inside a wrapping method too."""
    ids = [identity.of_method(method) for method in (Reads(file), Reads(str(file)), Around(Reads(file)))]
    assert ids[0] == ids[1] and ids[0]["settings"]["file"][0] == "w.safetensors"
    assert torch.equal(tensors(file)["w"], torch.ones(1))
    save_file({"w": torch.full((1,), 2.0)}, file)
    assert identity.of_method(Reads(file)) != ids[0] and identity.of_method(Around(Reads(file))) != ids[2]
    assert torch.equal(tensors(file)["w"], torch.full((1,), 2.0))  # what was read before is not taken for it


def test_a_wrong_file_is_told_in_one_line(file):
    """By the setting: no file named, none there; and a method that forgot to make a path of it."""
    for method, error, told in (
        (Reads(), UserError, r"methods\.mine\.file: which file\? set methods\.mine\.file=FILE"),
        (Around(Reads()), UserError, r"methods\.mine\.base\.file: which file\?"),
        (Reads(file.with_name("none")), UserError, r"methods\.mine\.file: there is no file .*none"),
        (Forgets(str(file)), MethodError, r"Forgets.__post_init__ must call super"),
    ):
        with pytest.raises(error, match=told):
            method.validate("methods.mine")
    assert Reads().unnamed and Around(Reads()).unnamed and not Reads(file).unnamed and not Around(Reads(file)).unnamed


def test_a_file_is_asked_for_before_a_model_is_loaded(monkeypatch):
    """A run stops there."""
    config = compose.composed(["method=full", "task=needle"])
    task, methods = building.build(config.task, "the task"), building.build_methods(config.methods)
    asked = spec.RunSpec.of(config, task, methods | {"mine": Reads()})
    monkeypatch.setattr(building, "build", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(UserError, match=r"methods\.mine\.file: which file"):
        asked.load()


def test_a_pickle_is_refused_with_a_command_that_converts_it(tmp_path):
    """The command works: lists and dictionaries of tensors come out flat."""
    path = tmp_path / "gate one.pt"
    torch.save({"module": [{"a": torch.ones(2)}, {"a": torch.zeros(1, 2)}], "epoch": 3}, path)
    with pytest.raises(UserError, match="is a pickle, which can run code") as error:
        tensors(path)
    told = str(error.value)
    assert "\n" not in told
    subprocess.run(told[told.index("python -c") :], shell=True, check=True, timeout=120)
    found = tensors(path.with_suffix(".safetensors"))
    assert sorted(found) == ["module.0.a", "module.1.a"] and torch.equal(found["module.0.a"], torch.ones(2))


def test_documents_and_numbers(tmp_path):
    """JSON, and rows of numbers; what is neither is refused with its place."""
    path = tmp_path / "x"
    path.write_text(json.dumps({"0-1": [0.5]}))
    assert document(path) == {"0-1": [0.5]}
    path.write_text("0.5\t1\n\n0.25\t1e-3\n")
    assert numbers(path) == ((0.5, 1.0), (0.25, 1e-3))
    for text, told in (
        ("1 2\n3 x\n", "line 2: wanted numbers"),
        ("1 2\n3\n", "line 2: 1 numbers"),
        ("\n", "no numbers"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=told):
            numbers(path)
    path.write_text("nan")
    with pytest.raises(UserError, match="line 1: wanted finite numbers"):
        numbers(path)
    path.write_text("{")
    with pytest.raises(UserError, match="is no JSON file"):
        document(path)
    with pytest.raises(UserError, match="is no safetensors file"):
        tensors(path)
