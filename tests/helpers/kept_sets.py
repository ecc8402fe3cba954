"""Kept sets beside those of naive implementations, on random prompts, by what the unmodified model attends with."""

from collections.abc import Iterator

import torch

import naive
from pvcbench.engine.evict import Cell
from pvcbench.policy import OutOfReach
from tiny import dense, engine, fork, positions, prompt, teach, unmodified

CLOSE = {"rtol": 1e-9, "atol": 1e-9}  # float64, see test_engine.py


def kept_sets(group, layer, steps=None):
    """The positions of a layer as [sample][head] sets; fails where one is held twice."""
    found = positions(group)[layer] if steps is None else steps[layer]
    sets = [[[p for p in head.tolist() if p >= 0] for head in sample] for sample in found]
    assert all(len(set(head)) == len(head) for sample in sets for head in sample), "an entry is held twice"
    return [[set(head) for head in sample] for sample in sets]


def sets_of(method, ids, family, budget):
    """What a method keeps of a prompt, as [layer][sample][head]; None where the budget is out of its reach."""
    host = engine(family)
    try:
        method = method.resolve(budget, host.shape(ids.shape[1]))
    except OutOfReach:
        return None
    [group] = fork(host, ids, [Cell("x", method, budget)], 0)
    return [kept_sets(group, layer) for layer in range(len(group.layers))]


def attention_of(family, ids) -> list[torch.Tensor]:
    """The dense attention weights of every layer, [batch, heads, tokens, tokens]."""
    found = {}
    dense(family)(ids, watch=found.__setitem__)
    return [found[layer] for layer in range(len(found))]


def cases(count: int) -> Iterator[tuple[str, torch.Tensor, int]]:
    """Random (family, prompt of two samples, budget), odd lengths and budgets included, without end."""
    generator = torch.Generator().manual_seed(count)
    number = 0
    while True:
        tokens = int(torch.randint(20, 90, (), generator=generator))
        budget = int(torch.randint(6, tokens + 4, (), generator=generator))
        yield ("llama", "qwen2", "qwen3")[number % 3], prompt(tokens, 2, seed=number), budget
        number += 1


def without_ties(count, check):
    """Runs a check on `count` random cases, taking another where the naive implementation meets a tie."""
    done = tied = 0
    for case in cases(count):
        try:
            check(*case)
            done += 1
        except naive.Tie:
            tied += 1
        assert tied <= 5, "too many ties for a test"
        if done == count:
            return


def evicts_as(rule_of, method, family, tokens, budget, chunks, interval=1):
    """Compares every eviction under hold with rules whose attention rows come from the dense reference."""
    host, ids, fed = engine(family), prompt(tokens, 2, seed=21), prompt(sum(chunks), 2, seed=22)
    groups = fork(host, ids, [Cell("x", method, budget, True, interval=interval)], max(chunks) + tokens)
    prefill, attention = groups[0].prefill, attention_of(family, ids)
    plan = method.plan(prefill.observer.scores[method], budget, prefill.shape)
    rules = [[rule_of(plan[layer][sample].tolist()) for sample in range(2)] for layer in range(len(attention))]
    for layer, weights in zip(rules, attention, strict=True):
        for sample, rule in enumerate(layer):
            rule.prefill(weights[sample])
    kept, logits = naive.decode(dense(family), ids, fed, chunks, rules)
    trace = teach(host, groups, fed, chunks)
    for number, (expected, (_, _, step)) in enumerate(zip(kept, trace.kept[0], strict=True)):
        for layer in range(len(rules)):
            assert kept_sets(None, layer, step) == expected[layer], (number, layer)
    torch.testing.assert_close(torch.stack(trace.logits, 1), logits, **CLOSE)


def cached(family, ids):
    """Keys and values of every layer as transformers' own cache holds them, [batch, heads, tokens, dim]."""
    layers = unmodified(family)(ids, use_cache=True).past_key_values.layers
    return [(layer.keys, layer.values) for layer in layers]


def heads_of(family):
    """KV heads of a family."""
    return engine(family).config.num_key_value_heads
