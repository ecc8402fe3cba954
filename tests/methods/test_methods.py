"""Every method of conf/method by every property of its kept sets, and H2O, StreamingLLM and random by their words."""

from itertools import pairwise

import pytest
import torch

import naive
from kept_sets import attention_of, evicts_as, kept_sets, without_ties
from methods.h2o import H2O
from methods.random import Random
from methods.streaming_llm import StreamingLLM
from pvcbench.engine.evict import Cell
from pvcbench.policy import Method, OutOfReach
from tiny import METHODS, WINDOW, cell_of, engine, fork, prompt, teach
from uneven_plans import Pyramid, Ragged

pytestmark = pytest.mark.usefixtures("inference")
DRAWS = torch.tensor([11, 2**40 + 3])
both = pytest.mark.parametrize("hold", [False, True], ids=["grow", "hold"])
every_method = pytest.mark.parametrize("name", METHODS)


# ---------------------------------------------------------------------------------------------- every method


@both
@every_method
@pytest.mark.sampled(6)
def test_the_realised_size_is_the_requested_one(name, hold):
    """Entries per KV head, mean over the layers that evict: exactly, or to 1% of the prompt where a solver sets it."""
    for family, tokens in (("llama_deep", 120), ("gemma3", 90), ("llama", 33)):
        host, method, ids = engine(family), METHODS[name], prompt(tokens, 2)
        shape, asked, prefills = host.shape(tokens), 0, {}
        for share in (0.1, 0.3, 0.5, 0.7, 0.9, 0.95):
            budget = int(share * tokens)
            try:
                settled = method.resolve(None if method.own_budget else budget, shape)
                if method.own_budget:
                    continue
                cell = Cell("x", settled, budget, hold and "hold" in settled.decodes)
                if settled not in prefills:  # what a prefill observes depends on no budget
                    observed = [settled] if cell.pruner is None else []
                    prefills[settled] = host.prefill(ids, observed, cell.pruner, DRAWS)
                group = host.fork(prefills[settled], [cell], 1)[0]
            except OutOfReach:
                continue
            asked += 1
            for sample in range(2):
                sizes = group.measure(0, sample).entries
                mean = sum(sizes[layer] for layer in shape.evicted) / len(shape.evicted)
                slack = 0.01 * tokens if settled != method else 0
                assert abs(mean - budget) <= slack, (family, share, sizes)
                assert all(sizes[layer] <= tokens for layer in range(shape.layers))
        assert asked or method.own_budget, f"{name} reaches no budget on {family}"


@every_method
@pytest.mark.sampled(4)
def test_what_is_protected_survives_64_steps(name):
    """First and last tokens that a method declares it protects are there after every step, and nothing twice."""
    for family, tokens, steps in (("llama", 48, 64), ("gemma3", 20, 24)):
        host = engine(family)
        shape = host.shape(tokens)
        cell = cell_of(METHODS[name], shape, hold=True)
        groups = fork(host, prompt(tokens, 2), [cell], steps, DRAWS)
        first, last = cell.method.protects(cell.budget, shape)
        trace = teach(host, groups, prompt(steps, 2, seed=1), [1] * steps)
        for seen, _, step in trace.kept[0]:
            for layer in shape.evicted:
                in_view = seen - (host.windows[layer] or seen)  # in a sliding layer nobody sees the others any more
                must = {j for j in (*range(first), *range(seen - last, seen)) if j > in_view or not host.windows[layer]}
                for sample in kept_sets(None, layer, step):
                    assert all(must & set(range(seen)) <= head for head in sample), (family, layer, seen)


@every_method
@pytest.mark.sampled(4)
def test_the_size_holds_while_decoding(name):
    """Under hold a budget is met in every step, from prompts longer and shorter than it."""
    host = engine("llama")
    for tokens, budget in ((50, 20), (50, 49), (15, 20)):
        method = METHODS[name]
        try:
            settled = method.resolve(None if method.own_budget else min(budget, tokens), host.shape(tokens))
        except OutOfReach:
            continue
        if method.own_budget or type(settled).drop is not Method.drop or "hold" not in method.decodes:
            continue  # block compression lets the cache grow, see test_pvc.py
        groups = fork(host, prompt(tokens, 2), [Cell("x", settled, budget, True)], 30, DRAWS)
        trace = teach(host, groups, prompt(30, 2, seed=1), [1] * 30)
        for seen, _, step in trace.kept[0]:
            assert {len(head) for layer in range(4) for sample in kept_sets(None, layer, step) for head in sample} == {
                min(seen, budget)
            }


@every_method
@pytest.mark.sampled(6)
def test_a_budget_out_of_reach_is_said_so(name):
    """A budget is met or refused, never missed in silence."""
    host, method = engine("llama_deep"), METHODS[name]
    shape, refused = host.shape(100), 0
    for budget in (1, 2, 5, 8, 12):
        if method.own_budget:
            return
        try:
            settled = method.resolve(budget, shape)
        except OutOfReach:
            refused += 1
            continue
        if budget < sum(method.protects(budget, shape)):
            continue  # the command line asks for sinks + 4 entries or more
        sizes = fork(host, prompt(100), [Cell("x", settled, budget)], 1, DRAWS[:1])[0].measure(0, 0).entries
        assert abs(sum(sizes) / 7 - budget) <= (1 if settled != method else 0)
    if method.prunes:
        assert refused >= 2  # layers 0 and 1 keep everything


# ---------------------------------------------------------------------------------------------- H2O


@pytest.mark.parametrize("normalize", [False, True], ids=["raw", "normalized"])
def test_h2o_keeps_what_the_naive_one_keeps(normalize):
    """Summed attention per KV head of a sample, the newest half of the budget protected."""

    def check(family, ids, budget):
        host = engine(family)
        group = fork(host, ids, [Cell("x", H2O(normalize), budget)], 0)[0]
        heads = group.prefill.layers[0].keys.shape[1]
        for layer, attention in enumerate(attention_of(family, ids)):
            for sample, found in enumerate(kept_sets(group, layer)):
                rule = naive.H2O(budget, normalize, heads)
                rule.prefill(attention[sample])
                assert found == rule.kept, (family, layer, sample)

    without_ties(20, check)


@pytest.mark.parametrize("normalize", [False, True], ids=["raw", "normalized"])
@pytest.mark.parametrize("family, tokens, budget, chunks", [
    ("llama", 30, 16, [1] * 40),
    ("qwen2", 41, 25, [1] * 12 + [7] + [1] * 5),
    ("qwen3", 12, 20, [1] * 30),
    ("mistral_sliding", 40, 15, [1] * 10 + [7] + [1] * 10),
], ids=["steps", "chunk", "short", "window"])  # fmt: skip
@pytest.mark.sampled(2)
def test_h2o_evicts_what_the_naive_one_evicts(normalize, family, tokens, budget, chunks):
    """Under hold, every eviction equals the running-sum simulation."""

    def rule_of(plan):
        return naive.H2O(budget, normalize, len(plan), window=WINDOW if family == "mistral_sliding" else None)

    evicts_as(rule_of, H2O(normalize), family, tokens, budget, chunks)


@pytest.mark.parametrize("method", [Ragged(), Pyramid()], ids=["ragged", "pyramid"])
@pytest.mark.parametrize("family", ["llama", "mistral_sliding"])
def test_uneven_plans_evict_what_a_naive_one_evicts(method, family):
    """Where heads or layers hold different numbers of entries, each still loses its own lowest sum."""

    def rule_of(plan):
        window = WINDOW if family == "mistral_sliding" else None
        sizes = [size if window is None else min(size, window - 1) for size in plan]
        return naive.H2O(30, False, len(plan), sizes, *method.protects(30, None), window)

    evicts_as(rule_of, method, family, 60, 30, [1] * 8 + [5] + [1] * 4)


# ---------------------------------------------------------------------------------------------- StreamingLLM


@both
@pytest.mark.parametrize("at", ["cache", "original"])
@pytest.mark.sampled(2)
def test_streaming_llm_keeps_sinks_and_the_newest(at, hold):
    """The first `sinks` and the newest `budget - sinks`, after the prefill and, under hold, after every step."""

    def check(family, ids, budget):
        host, tokens, sinks = engine(family), ids.shape[1], budget % 5
        groups = fork(host, ids, [Cell("x", StreamingLLM(sinks, at), budget, hold)], 6)
        trace = teach(host, groups, prompt(6, 2, seed=2), [1, 1, 3, 1])
        start = naive.streaming(tokens, budget, sinks)
        for seen, _, step in trace.kept[0]:
            expected = naive.streaming(seen, budget, sinks) if hold else start | set(range(tokens, seen))
            for layer in range(4):
                assert kept_sets(None, layer, step) == [[expected] * step[layer].shape[1]] * 2, (family, seen)

    without_ties(20, check)


# ---------------------------------------------------------------------------------------------- random


def random_sets(ids, draws, budget=16):
    """The kept sets of random eviction as [layer][sample][head]."""
    group = fork(engine("llama"), ids, [Cell("x", Random(), budget)], 0, draws)[0]
    return [kept_sets(group, layer) for layer in range(4)]


def test_random_is_a_function_of_the_draws():
    """Other tokens with the same draws keep the same sets; other draws keep others; the batch does not matter."""
    draws = torch.tensor([3, 4, 2**50])
    sets = random_sets(prompt(64, 3), draws)
    assert sets == random_sets(prompt(64, 3, seed=1), draws)
    for sample in range(3):
        alone = random_sets(prompt(64), draws[sample : sample + 1])
        assert [layer[0] for layer in alone] == [layer[sample] for layer in sets]
    assert len({frozenset(head) for layer in sets for sample in layer for head in sample}) == 4 * 3 * 2


def test_random_is_uniform():
    """Each position is kept about equally often, and pairs of heads overlap as chance has it."""
    draws = torch.randint(2**62, (50,), generator=torch.Generator().manual_seed(0))
    sets = [head for layer in random_sets(prompt(64, 50), draws) for sample in layer for head in sample]
    counts = torch.zeros(64)
    for kept in sets:
        counts[list(kept)] += 1
    deviation = (400 * 0.25 * 0.75) ** 0.5  # of 400 subsets, a quarter each
    assert (counts - 100).abs().max() < 4 * deviation  # 64 positions: one in 250 sound generators would fail
    overlaps = torch.tensor([len(a & b) for a, b in pairwise(sets)], dtype=torch.float64)
    assert abs(overlaps.mean() - 4) < 0.35  # hypergeometric: mean 4, deviation 1.5, 399 pairs: 4.6 standard errors


def test_random_keeps_its_scores_while_decoding():
    """Under hold an entry's draw stays: what was evicted is what a draw over all tokens would have evicted."""
    host, ids, fed = engine("llama"), prompt(30, 2), prompt(20, 2, seed=1)
    groups = fork(host, ids, [Cell("x", Random(), 12, True)], 20, DRAWS)
    trace = teach(host, groups, fed, [1] * 20)
    whole = fork(host, torch.cat((ids, fed[:, :19]), 1), [Cell("x", Random(), 12)], 0, DRAWS)[0]
    for layer in range(4):
        assert kept_sets(None, layer, trace.kept[0][-1][2]) == kept_sets(whole, layer)
