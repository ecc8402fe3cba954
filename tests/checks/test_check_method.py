"""`pvcbench check method`: a mutant for each kind of mistake is named in one line; every method of ours is right."""

import re
from dataclasses import dataclass

import pytest
import torch

from pvcbench.checks import check_method, failures
from pvcbench.checks.method import CHECKS, TITLES, name_of, outcome_of
from pvcbench.config import building, compose
from pvcbench.errors import UserError
from pvcbench.policy import Method, OutOfReach

CALLS = [0]


@dataclass(frozen=True)
class Newest(Method):
    """The newest entries: right. Each of the methods below breaks one rule."""

    def scores(self, seen):
        return seen.positions.double()


class Heads(Newest):
    def scores(self, seen):
        return seen.positions.double().repeat_interleave(2, 1)


class Missing(Newest):
    def scores(self, seen):
        return (seen.positions - 5).double() / (seen.positions - 5)


class Half(Newest):
    def scores(self, seen):
        return seen.positions.half()


class Whole(Newest):
    def scores(self, seen):
        return seen.positions


class Drawn(Newest):
    def scores(self, seen):
        return torch.rand(seen.positions.shape)


class Endless(Newest):
    def scores(self, seen):
        return seen.positions.double().masked_fill(seen.positions < 4, float("inf"))


class Careless(Newest):
    """The mean of all slots is that of tokens to come as well, where a document is streamed."""

    def scores(self, seen):
        return -(seen.keys * seen.keys.mean(2, keepdim=True)).sum(-1)


class Counting(Newest):
    def scores(self, seen):
        object.__setattr__(self, "calls", getattr(self, "calls", 0) + 1)
        return seen.positions.double() * (-1) ** self.calls


class Remembering(Newest):
    """Its first prompt's keys decide ever after."""

    first: tuple = ()

    def scores(self, seen):
        if not Remembering.first:
            Remembering.first = tuple(seen.keys[0, 0, 0].tolist())
        return (seen.keys * torch.tensor(Remembering.first)).sum(-1)


class Global(Newest):
    def scores(self, seen):
        CALLS[0] += 1
        return seen.positions.double()


@dataclass(frozen=True)
class Assigning(Newest):
    def scores(self, seen):
        self.last = seen.positions
        return seen.positions.double()


class Writing(Newest):
    def scores(self, seen):
        return seen.keys.square_().sum(-1)


class TwiceTheBudget(Newest):
    def plan(self, scores, budget, shape):
        return [2 * counts for counts in super().plan(scores, budget, shape)]


class HalfTheBudget(Newest):
    def plan(self, scores, budget, shape):
        return [counts // 2 for counts in super().plan(scores, budget, shape)]


class Broken(Newest):
    def plan(self, scores, budget, shape):
        return [counts / 3 for counts in super().plan(scores, budget, shape)]


class Crash(Newest):
    def scores(self, seen):
        return seen.mass.sum(1)


class Never(Newest):
    def resolve(self, budget, shape):
        raise OutOfReach("never")


class Dropping(Newest):
    def protects(self, budget, shape):
        return 4, 0

    def drop(self, seen, budget):
        return seen.positions.argmin(-1, keepdim=True) if seen.excess > 0 else None


class Mixing(Newest):
    def scores(self, seen):
        return (seen.keys - 2 * seen.keys.mean(0, keepdim=True)).norm(dim=-1)


MUTANTS = {  # the title of the line, the function that it names, words in it, the check that finds it
    Heads: ("wrong shape", "scores", "[2, 4, 128]", "every answer"),
    Missing: ("NaN", "scores", "0 / 0", "every answer"),
    Half: ("wrong dtype", "scores", "float16", "every answer"),
    Whole: ("wrong dtype", "scores", "int64", "every answer"),
    Drawn: ("not deterministic", "scores", "seen.draws", "every answer"),
    Endless: ("scores protected entries", "scores", "protects()", "every answer"),
    Careless: ("looks at the future", "scores", "seen.positions >= 0", "nothing of the future"),
    Counting: ("keeps state between calls", "scores", "changed calls", "every answer"),
    Remembering: ("keeps state between calls", "scores", "Remembering.first", "no state"),
    Global: ("keeps state between calls", "scores", "CALLS", "no state"),
    Assigning: ("keeps state between calls", "scores", "FrozenInstanceError", "every answer"),
    Writing: ("writes into what it is shown", "scores", "clone()", "every answer"),
    TwiceTheBudget: ("misses its budget", "plan", "at most the budget's", "every answer"),
    HalfTheBudget: ("misses its budget", "plan", "were asked for", "realised size"),
    Broken: ("wrong plan", "plan", "whole numbers", "every answer"),
    Crash: ("stops with an error", "scores", "row_weights()", "every answer"),
    Never: ("reaches no budget", "resolve", "OutOfReach", "every answer"),
    Dropping: ("drops protected entries", "drop", "protects()", "every answer"),
    Mixing: ("not exact", "scores", "ragged_batch = True", "batch as single"),
}


@pytest.mark.parametrize("kind", MUTANTS, ids=lambda kind: kind.__name__)
def test_a_mutant_is_named_in_one_line(kind):
    """What is wrong, in which function of which file and line, and what to do."""
    title, function, words, name = MUTANTS[kind]
    decisive = name in ("every answer", "no state")
    [check] = [one for one in CHECKS if name_of(one) == name]
    found = check_method(kind()) if decisive else [outcome_of(name, check, kind())[1]]
    [failed] = [one for one in found if one.failed]
    text = failed.line
    assert failed.name == name and text.startswith(f"{title}: ") and words in text and "\n" not in text, text
    owner = next(one for one in kind.__mro__ if function in vars(one))
    line = int(re.search(rf"{kind.__name__}\.{function} \({re.escape(__file__)}:(\d+)\)", text)[1])
    first = vars(owner)[function].__code__.co_firstlineno
    assert first <= line <= first + 5
    if decisive:  # what comes after could only repeat it
        assert {one.result for one in found[2:]} == {"not run"}


def test_a_right_method_passes_everything_but_what_does_not_apply():
    found = check_method(Newest())
    assert {one.name: one.result for one in found if one.result != "passed"} == {"protected entries": "not applicable"}
    assert len(found) == len(CHECKS)


def test_failures_are_the_lines_of_what_failed():
    [text] = failures(Heads())
    assert text.startswith("wrong shape: Heads.scores (")


def test_every_title_is_met_by_a_mutant():
    assert set(TITLES.values()) - {title for title, *_ in MUTANTS.values()} == {"wrong answer"}


def test_what_is_no_frozen_dataclass_is_refused():
    @dataclass
    class Loose(Method):
        ratio: float = 0.5

    for one in (Loose(), object(), Newest):
        with pytest.raises(UserError, match=r"derive its class from pvcbench\.policy\.Method"):
            check_method(one)


@pytest.mark.slow
@pytest.mark.parametrize("name", compose.complete("method"))
def test_every_method_of_ours_is_right(name):
    """With its settings as they are, unless these need longer prompts than the check has."""
    settings = [f"method={name}"] + ["methods.simlayerkv.recent=24"] * (name == "simlayerkv")
    method = building.build_methods(compose.composed(settings).methods)[name]
    if method.unnamed:
        pytest.skip("it needs a trained file, which fits one model only")
    found = check_method(method)
    assert [one.line for one in found if one.failed] == []
    assert method.reference or sum(one.result == "passed" for one in found) >= 7


@pytest.mark.parametrize("name", ["ada_snapkv", "full"])
def test_a_few_of_ours_are_right(name):
    """The quick ones; the others are slow."""
    method = building.build_methods(compose.composed([f"method={name}"]).methods)[name]
    assert failures(method) == []
