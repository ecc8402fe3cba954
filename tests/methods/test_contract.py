"""The contract of methods: what breaks it is refused on a short prompt, by file, line, what came and what is wanted."""

import re
from dataclasses import dataclass

import pytest
import torch

import tiny
from pvcbench.engine.evict import Cell
from pvcbench.errors import MethodError
from pvcbench.evaluation.preflight import try_method
from pvcbench.policy import Method


@dataclass(frozen=True)
class Newest(Method):
    """The newest entries; each of the methods below breaks one rule."""

    def scores(self, seen):
        return seen.positions.double()


class Half(Newest):
    def scores(self, seen):
        return seen.positions.half()


class Flags(Newest):
    def scores(self, seen):
        return seen.positions > 3


class Whole(Newest):
    def scores(self, seen):
        return seen.positions


class Heads(Newest):
    def scores(self, seen):
        return seen.positions.double().repeat_interleave(2, 1)


class Missing(Newest):
    def scores(self, seen):
        return seen.positions.double().masked_fill(seen.positions == 5, float("nan"))


class Endless(Newest):
    def scores(self, seen):
        return seen.positions.double().masked_fill(seen.positions == 5, float("inf"))


class Drawn(Newest):
    def scores(self, seen):
        return torch.rand(seen.positions.shape)


class Crash(Newest):
    def scores(self, seen):
        raise KeyError("mass")


class Nothing(Newest):
    def scores(self, seen):
        return None


class TwiceTheRows(Newest):
    def row_weights(self, shape, layer):
        return torch.ones(2 * shape.tokens)


class FlatRows(Newest):
    def row_weights(self, shape, layer):
        return torch.ones(2, 3)


class BadRows(Newest):
    def row_weights(self, shape, layer):
        return torch.full((3,), float("nan"))


class TwiceTheBudget(Newest):
    def plan(self, scores, budget, shape):
        return [2 * counts for counts in super().plan(scores, budget, shape)]


class OneLayerOver(Newest):
    def plan(self, scores, budget, shape):
        counts = super().plan(scores, budget, shape)
        counts[0] += 20
        return counts


class Broken(Newest):
    def plan(self, scores, budget, shape):
        return [counts.double() for counts in super().plan(scores, budget, shape)]


class Negative(Newest):
    def plan(self, scores, budget, shape):
        counts = super().plan(scores, budget, shape)
        counts[0][:] = -1
        return counts


class OneHead(Newest):
    def plan(self, scores, budget, shape):
        return [counts[..., :1] for counts in super().plan(scores, budget, shape)]


class Totals(Newest):
    def accumulate(self, seen):
        return seen.positions.double()[..., None]


class NoPair(Newest):
    def protects(self, budget, shape):
        return 0.5


class Unresolved(Newest):
    def resolve(self, budget, shape):
        return None


class Pruner(Newest):
    """Prunes by indices that subclasses get wrong; this one drops too few."""

    prunes = True

    def survivors(self, seen):
        return None


class Unordered(Pruner):
    def survivors(self, seen):
        return torch.arange(seen.positions.shape[-1] // 2).flip(0).expand(len(seen.positions), -1)


class Unprotected(Pruner):
    def protects(self, budget, shape):
        return 0, 4

    def survivors(self, seen):
        return torch.arange(40).expand(len(seen.positions), -1)


class SameSlots(Newest):
    def drop(self, seen, budget):
        return torch.zeros(*seen.positions.shape[:2], 2, dtype=torch.int64)


class ProtectedSlots(Newest):
    def protects(self, budget, shape):
        return 4, 0

    def drop(self, seen, budget):
        return seen.positions.argmin(-1, keepdim=True)


OURS = [name for name, method in tiny.METHODS.items() if not method.reference]
BROKEN = {
    Half: ("scores", "float16 [2, 2, 96]", "float32 or float64 [2, 2, 96]"),
    Flags: ("scores", "bool [2, 2, 96]", "float32 or float64"),
    Whole: ("scores", "int64", "float32 or float64"),
    Heads: ("scores", "float64 [2, 4, 96]", "[2, 2, 96]"),
    Missing: ("scores", "NaN or infinite", "finite"),
    Endless: ("scores", "NaN or infinite", "finite"),
    Drawn: ("scores", "another answer", "the same"),
    Crash: ("scores", "KeyError", "stopped"),
    Nothing: ("scores", "None", "float32"),
    TwiceTheRows: ("row_weights", "[192]", "at most 96 rows"),
    FlatRows: ("row_weights", "[2, 3]", "at most 96 rows"),
    BadRows: ("row_weights", "NaN", "finite"),
    TwiceTheBudget: ("plan", "96.0 entries", "48"),
    OneLayerOver: ("plan", "53.0 entries", "48"),
    Broken: ("plan", "float64", "whole numbers"),
    Negative: ("plan", "int64", "0 or more"),
    OneHead: ("plan", "4 of int64 [2, 1]", "4 layers whole numbers, 0 or more, [2, 2]"),
    Totals: ("accumulate", "[2, 2, 96, 1]", "channels"),
    NoPair: ("protects", "0.5", "two whole numbers"),
    Unresolved: ("resolve", "None", "a method"),
    Pruner: ("survivors", "96.0 entries", "48"),
    Unordered: ("survivors", "int64", "rising"),
    Unprotected: ("survivors", "without some", "4 last"),
    SameSlots: ("drop", "one twice", "each once"),
    ProtectedSlots: ("drop", "protected", "others"),
}


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_a_broken_method_is_refused_by_file_and_line(kind):
    """The message names the function that is wrong, where it is, what came of it and what is wanted."""
    function, *words = BROKEN[kind]
    with pytest.raises(MethodError) as error:
        try_method(tiny.engine("llama"), kind(), hold=True)
    owner = next(one for one in kind.__mro__ if function in vars(one))
    first = vars(owner)[function].__code__.co_firstlineno
    text = str(error.value)
    assert f"{kind.__name__}.{function} ({__file__}:" in text and all(word in text for word in words), text
    line = int(re.search(rf"{re.escape(__file__)}:(\d+)", text)[1])
    assert first <= line <= first + 1


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_every_method_of_ours_passes(name, family):
    """In float64, and in the sixteen bits that models run in."""
    try_method(tiny.engine(family), tiny.METHODS[name], hold=True)


@pytest.mark.parametrize("name", OURS)
def test_every_method_of_ours_passes_in_bfloat16(name, sixteen):
    try_method(sixteen, tiny.METHODS[name], hold=True)


@pytest.fixture(scope="module")
def sixteen():
    """The engine on a model in bfloat16."""
    return tiny.Engine(tiny.build("llama", torch.bfloat16, exact=False), writer=tiny.WRITER)


def test_a_plan_over_budget_is_refused_in_every_run():
    """Not only on trial: the fork itself refuses it."""
    host, method = tiny.engine("llama"), TwiceTheBudget()
    prefill = host.prefill(tiny.prompt(60), [method])
    with pytest.raises(MethodError, match=r"60.0 entries per KV head and layer; wanted: at most the budget's 30"):
        host.fork(prefill, [Cell("x", method, 30)], 0)
