"""The solver of PvC's ratios against the search it replaced: the same settings and the same words, without the wait."""

import math
from dataclasses import replace

import pytest

from methods import pvc_ladder
from methods.pvc import PvC
from pvcbench.policy import OutOfReach, Shape

SETTINGS = {
    "cosine": PvC(),
    "constant": PvC(schedule="constant"),
    "constant_kv": PvC(schedule="constant", prune="kv"),
    "linear": PvC(schedule="linear"),
    "interval3": PvC(layerwise_downsample_interval=3),
    "interval2_kv": PvC(prune="kv", layerwise_downsample_interval=2),
    "no_recent": PvC(recent_ratio=0.0),
    "low_floor": PvC(schedule="constant", min_context_length=8),
}
SHAPES = {
    "short": Shape(90, 6, tuple(range(6))),
    "some_layers": Shape(300, 9, (1, 3, 5, 7)),
    "long": Shape(1000, 8, tuple(range(8))),
}


def mean_entries(method, shape):
    """Mean entries over the layers that evict, with integers and one layer after the other."""
    recent = min(shape.tokens, int(method.recent_ratio * shape.tokens) + 1)
    older = shape.tokens - recent
    floor, kept = min(method.min_context_length, older), [shape.tokens]
    for layer in range(shape.layers):
        ratio = method.prefill_decay_ratio
        share = {
            "cosine": ratio + (1 - ratio) * (1 + math.cos(math.pi * layer / shape.layers)) / 2,
            "linear": 1 - (1 - ratio) * layer / shape.layers,
            "constant": ratio,
        }[method.schedule]
        prunes = layer in shape.evicted and layer % method.layerwise_downsample_interval == 0
        if prunes and int(older * share) > floor and share < 1:
            older = int(older * share)
        kept.append(older + recent)
    after = 1 if method.prune == "kv" else 0
    return sum(kept[layer + after] for layer in shape.evicted) / len(shape.evicted)


def searched(method, budget, shape):
    """The search over 8,421 settings one by one, and 2,001 for the reach: what the solver has to equal."""

    def at(ratio, recent=method.recent_ratio):
        return replace(method, prefill_decay_ratio=ratio, recent_ratio=recent)

    def off(candidate):
        return abs(mean_entries(candidate, shape) - budget)

    def bisect(high, make):
        low = 0.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if mean_entries(make(middle), shape) <= budget else (low, middle)
        return min((make(low), make(high)), key=off)

    def candidates():
        yield bisect(1.0, at)
        yield bisect(method.recent_ratio, lambda recent: at(0.01, recent))
        for part in range(20, -1, -1):
            yield min((at(step / 400, method.recent_ratio * part / 20) for step in range(401)), key=off)

    for found in candidates():
        if off(found) <= 0.01 * shape.tokens:
            return found
    least = min(mean_entries(at(step / 2000, 0.0), shape) for step in range(2001))
    if budget < least:
        return f"below PvC's reach of {least / shape.tokens:.1%}"
    return f"no ratio of PvC's {method.schedule} schedule comes within 1% of {budget / shape.tokens:.1%}"


def solved(method, budget, shape):
    """The solver's answer, or what it says."""
    try:
        return pvc_ladder.solve(method, budget, shape)
    except OutOfReach as error:
        return str(error)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.sampled(8)
def test_the_solver_equals_the_search(setting, shape):
    """Budgets within reach and out of it, to the last bit of both ratios and of the message."""
    for share in (0.05, 0.3, 0.45, 0.6, 0.9):
        budget = int(share * SHAPES[shape].tokens)
        expected = searched(SETTINGS[setting], budget, SHAPES[shape])
        assert solved(SETTINGS[setting], budget, SHAPES[shape]) == expected, share


def test_below_reach_is_said_after_some_hundred_evaluations(monkeypatch):
    """What took 10,500 ladders takes a hundred, most of them for a whole row of the grid at once."""
    calls, own = [], pvc_ladder.sizes
    monkeypatch.setattr(pvc_ladder, "sizes", lambda *args: calls.append(args) or own(*args))
    shape = Shape(2051, 30, tuple(range(30)))
    with pytest.raises(OutOfReach, match=r"reach of 35\.5%"):
        pvc_ladder.solve(PvC(), 205, shape)
    assert 50 < len(calls) < 200


def test_settled_ratios_are_numbers_like_any_other():
    """A run's identity and rows hold plain floats, whichever search found them."""
    for setting in ("constant", "cosine"):
        for budget in range(200, 1000, 100):
            found = solved(SETTINGS[setting], budget, SHAPES["long"])
            if isinstance(found, PvC):
                assert type(found.prefill_decay_ratio) is float and type(found.recent_ratio) is float
