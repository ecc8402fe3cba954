"""What a second round of attempts to break things found: each was a wrong number without a word, or a traceback."""

import importlib
import sys
from dataclasses import dataclass
from enum import Enum

import pytest
import torch

from pvcbench.engine import answers
from pvcbench.errors import MethodError
from pvcbench.models.loaded import tokenizer_id
from pvcbench.models.random_weights import byte_tokenizer
from pvcbench.policy import Method, Observation, Shape
from pvcbench.runs.identity import of_method

MODULE = """
import json
from dataclasses import dataclass
from pathlib import Path
from pvcbench.policy import Method

ALPHA, WORD = 1.0, "one"
BETA = 2.0
FROM_FILE = json.loads((Path(__file__).parent / "w.json").read_text())

def weigh(x):
    return x * BETA

@dataclass(frozen=True)
class Own(Method):
    def scores(self, seen):
        return weigh(seen.keys.norm(dim=-1)) * FROM_FILE["w"]
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_globals.py").write_text(MODULE)
    (tmp_path / "w.json").write_text('{"w": 1}')
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("own_globals")
    del sys.modules["own_globals"]


def test_a_modules_globals_set_from_outside_are_another_method(own, monkeypatch):
    first = of_method(own.Own())
    assert of_method(own.Own()) == first
    for name, value in (("BETA", -2.0), ("FROM_FILE", {"w": -1})):
        with monkeypatch.context() as now:
            now.setattr(own, name, value)
            assert of_method(own.Own()) != first, name
    assert of_method(own.Own()) == first


@dataclass(frozen=True, eq=False)
class Holds(Method):
    it: object = None


def test_an_enums_values_and_bytes_and_sparse_tensors_are_told():
    def mode(value):
        return Enum("Mode", {"A": value}).A

    assert of_method(Holds(mode(1.0))) != of_method(Holds(mode(2.0)))
    assert of_method(Holds(b"one")) != of_method(Holds(b"two"))
    assert of_method(Holds(torch.eye(3).to_sparse())) != of_method(Holds(2 * torch.eye(3).to_sparse()))


def test_a_tokenizer_that_splits_special_tokens_is_another():
    split = byte_tokenizer()
    split.split_special_tokens = True
    assert tokenizer_id(split) != tokenizer_id(byte_tokenizer())


class Clamps(Method):
    def scores(self, seen):
        return seen.keys.clamp_(-0.1, 0.1).sum(-1)


class Numpy(Method):
    def scores(self, seen):
        return seen.keys.sum(-1).numpy()


@pytest.mark.parametrize(("method", "says"), [(Clamps(), "in place"), (Numpy(), "one number for each entry")])
def test_what_a_method_is_shown_stays_as_it_is(method, says):
    keys, positions = torch.randn(1, 2, 5, 4), torch.arange(5).expand(1, 2, 5)
    seen = Observation(
        0, Shape(5, 1, (0,)), 5, keys, keys.clone(), positions, None, None, torch.zeros(1, dtype=torch.long), 5
    )
    with pytest.raises(MethodError, match=says):
        answers.scores(method, seen, strict=True)
