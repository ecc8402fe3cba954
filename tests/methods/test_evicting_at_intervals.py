"""R-KV, SnapKV-D, VaSE and their kin at intervals: what they keep, step by step, as naive_intervals has it."""

import math

import pytest
import torch

import naive
import naive_intervals
import naive_published
import naive_scores
from kept_sets import evicts_as, heads_of, kept_sets
from methods.h2o import H2O
from methods.lagkv_decoding import LagKVDecoding
from methods.random import Random
from methods.random_redrawn import RandomRedrawn
from methods.rkv import RKV, redundancy
from methods.snapkv_d import SnapKVD
from methods.streaming_llm import StreamingLLM
from methods.tova import TOVA
from methods.vase import VaSE
from pvcbench.engine.evict import Cell
from pvcbench.policy import Observation, OutOfReach, Shape
from tiny import dense, distinct, engine, fork, teach

pytestmark = pytest.mark.usefixtures("inference")
DRAWS = torch.tensor([11, 2**40 + 3])
TOKENS, STEPS, BUDGET, INTERVAL = 30, 14, 16, 4


def newest(head):
    return {j: float(j) for j in head.keys if j >= 3}


def keydiff(head):
    return naive_scores.keydiff(head.keys)


def lagkv(head):
    """Ranks within partitions of what is there, by age; the last partition and the rest by age, above all others.

    Of equal ranks the earlier one stays after the prompt, and the later one while decoding, as everywhere.
    """
    order, sign = sorted(head.keys), -1e-6 if head.seen == TOKENS else 1e-6
    ranks, _ = naive_published.lagkv(*([own[j] for j in order] for own in (head.keys, head.values)), 3, 4)
    return {j: ranks.get(place, 1.0 + place) + sign * place for place, j in enumerate(order) if place >= 3}


TWINS = {
    "rkv": (RKV(window=4, kernel=3), naive_intervals.rkv(0.1, 4, 3, 0.5)),
    "rkv of its code": (RKV(0.07, window=6, kernel=7, similar=0.3), naive_intervals.rkv(0.07, 6, 7, 0.3)),
    "rkv by importance": (RKV(0.9, window=4), naive_intervals.rkv(0.9, 4, 7, 0.5)),
    "snapkv_d": (SnapKVD(window=5), naive_intervals.snapkv_d(5, 5)),
    "vase": (VaSE(window=4, kernel=3, outliers=5, sinks=2), naive_intervals.vase(4, 3, 5, 2)),
    "vase, half of the rest": (VaSE(window=4), naive_intervals.vase(4, 5, 1024, 4)),
    "random_redrawn": (RandomRedrawn(), naive_intervals.random_redrawn),
    "streaming_llm": (StreamingLLM(3, "original"), newest),
    "lagkv_decoding": (LagKVDecoding(3, 4), lagkv),
}
CASES = [(name, "llama", False) for name in TWINS] + [("rkv", "qwen3", True), ("vase", "qwen2", True)]


@pytest.mark.parametrize("name, family, stays", CASES)
def test_every_eviction_is_the_naive_one(name, family, stays):
    """Kept sets before every step and logits after it, two samples at once; the prompt counted in, or protected."""
    method, scores = TWINS[name]
    budget = 9 if stays else BUDGET
    host, tokens = engine(family), distinct(TOKENS + STEPS, 2)
    ids, fed = tokens[:, :TOKENS], tokens[:, TOKENS:]
    method = method.resolve(budget, host.shape(TOKENS))
    groups = fork(host, ids, [Cell("x", method, budget, True, interval=INTERVAL, stays=stays)], STEPS, DRAWS)
    kept, logits = naive_intervals.decode(dense(family), ids, fed, scores, budget, INTERVAL, DRAWS, stays)
    trace = teach(host, groups, fed, [1] * STEPS)
    assert len({len(step[0][0][0]) for step in kept}) > 2
    for number, (expected, (_, _, step)) in enumerate(zip(kept, trace.kept[0], strict=True)):
        for layer, sets in enumerate(expected):
            assert kept_sets(None, layer, step) == sets, (number, layer)
    torch.testing.assert_close(torch.stack(trace.logits, 1), logits, rtol=1e-9, atol=1e-9)


class LateH2O(naive.H2O):
    """Sums in every step, evicts when three entries are too many."""

    def step(self, rows, first_layer_entries=None):
        self._receive(rows, self.seen)
        if max(map(len, self.score)) >= self.budget + 3:
            self._evict()


class LateTOVA(naive_scores.TOVA):
    """The newest row ranks when three entries are too many."""

    def step(self, rows, first_layer_entries=None):
        self.there |= set(range(rows.shape[2] - rows.shape[1], rows.shape[2]))
        if len(self.there) >= self.budget + 3:
            self._evict(rows[:, -1])


def test_h2o_sums_every_step_and_tova_looks_at_the_last():
    """By attention rows of the dense reference; a question of five tokens is one step."""
    chunks, heads = [5, *[1] * 9], heads_of("llama")
    evicts_as(lambda plan: LateH2O(plan[0], False, heads), H2O(), "llama", 40, 17, chunks, interval=3)
    evicts_as(lambda plan: LateTOVA(plan[0], heads), TOVA(), "llama", 40, 17, chunks, interval=3)


def test_the_redundancy_of_four_keys():
    """The check value of the description, and empty slots that change nothing."""
    keys = torch.tensor([[1.0, 0], [1, 0], [0, 1], [1, 0], [1, 0]], dtype=torch.float64).view(1, 1, 5, 2)
    there = torch.tensor([True] * 4 + [False]).view(1, 1, 5)
    found = redundancy(keys[:, :, :4], there[..., :4], 0.5)[0, 0].tolist()
    assert [round(one, 3) for one in found] == [0.334, 0.26, 0.203, 0.203]
    assert redundancy(keys, there, 0.5)[0, 0].tolist() == pytest.approx([*found, 0.0])


def observation(batch, positions, tokens, excess, seen, **more):
    """What a method sees of a fabricated cache of one head, whose samples differ in their draws."""
    keys = torch.zeros(batch, 1, len(positions), 2)
    places = torch.tensor(positions).expand(batch, 1, -1)
    draws, shape = torch.arange(batch) * 1_000_003, Shape(tokens, 1, (0,))
    return Observation(0, shape, seen, keys, keys, places, None, None, draws, 0, excess=excess, **more)


def survivors(method, evictions, samples=4000, budget=12, new=6):
    """The share of the prompt's entries that is left after so many evictions."""
    held = torch.arange(budget).expand(samples, 1, -1)
    for number in range(evictions):
        seen = budget + (number + 1) * new
        held = torch.cat((held, torch.arange(seen - new, seen).expand(samples, 1, -1)), 2)
        view = observation(samples, list(range(budget + new)), budget, new, seen)
        view = type(view)(**{**vars(view), "positions": held})
        gone = torch.zeros_like(held, dtype=torch.bool).scatter(-1, method.drop(view, budget), True)
        held = held[~gone].view(samples, 1, budget)
    return (held < budget).double().mean().item()


def test_the_two_readings_of_random():
    """Drawn once, the prompt's share of what is kept is its share of all tokens; redrawn, it falls geometrically."""
    for evictions in (1, 4):
        uniform, recent = survivors(Random(), evictions), survivors(RandomRedrawn(), evictions)
        assert uniform == pytest.approx(12 / (12 + 6 * evictions), abs=0.015)  # 48,000 draws: 5 standard errors
        assert recent == pytest.approx((12 / 18) ** evictions, abs=0.015)


def test_vase_draws_without_replacement():
    """Which two of three entries stay: as often as drawing one after the other by attention says."""
    attention, samples = torch.tensor([0.6, 0.3, 0.1]), 30_000
    view = observation(samples, [0, 1, 2], 3, 1, 4)
    method = VaSE(window=1, kernel=1, outliers=0, sinks=0)
    drawn = method.drawn_scores(attention.expand(samples, 1, 3).double(), view)
    lost = drawn.argmin(-1).flatten().bincount(minlength=3) / samples
    weights = attention.tolist()
    for j in range(3):
        first, second = (k for k in range(3) if k != j)
        share = sum(weights[a] * weights[b] / (1 - weights[a]) for a, b in ((first, second), (second, first)))
        assert lost[j].item() == pytest.approx(share, abs=5 * math.sqrt(share / samples))


def test_what_always_stays_bounds_the_reach():
    """A budget within the window, or within sinks and window, is out of reach."""
    shape = Shape(100, 4, (0, 1, 2, 3))
    for method, least in ((RKV(), 9), (SnapKVD(), 65), (VaSE(), 69)):
        assert method.resolve(least, shape)
        with pytest.raises(OutOfReach, match="below"):
            method.resolve(least - 1, shape)
