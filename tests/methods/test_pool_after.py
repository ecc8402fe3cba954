"""Pooling before or after a group's query heads are averaged: naive scores for both, and which variant does which."""

import math

import pytest
import torch

import naive_scores
from kept_sets import attention_of, kept_sets, without_ties
from methods.ada_kv import AdaKV
from methods.pyramidkv import PyramidKV
from methods.snapkv import SnapKV
from pvcbench.engine.evict import Cell
from pvcbench.policy import UserError
from tiny import configured, engine, fork, prompt

pytestmark = pytest.mark.usefixtures("inference")
WINDOW, KERNEL = 4, 7


def grouped(attention, kv_heads, pooling):
    """Scores as AdaKV's code for grouped queries makes them: mean of the window's rows and heads, then pooling."""
    tokens, group, found = len(attention[0]), len(attention) // kv_heads, []
    for head in range(kv_heads):
        members = attention[head * group : (head + 1) * group]
        mean = [
            math.fsum(rows[tokens - WINDOW + row][j] for rows in members for row in range(WINDOW)) / (WINDOW * group)
            for j in range(tokens - WINDOW)
        ]
        found.append(dict(enumerate(naive_scores.pooled(mean, KERNEL, pooling))))
    return found


def kept_by(method, ids, family, budget):
    """What a method keeps of a prompt, as [layer][sample][head]."""
    group = fork(engine(family), ids, [Cell("x", method, budget)], 0)[0]
    return [kept_sets(group, layer) for layer in range(len(group.layers))]


@pytest.mark.parametrize("pooling", ["max", "average"])
def test_after_the_group_is_what_the_official_grouped_code_keeps(pooling):
    """SnapKV's sets on models with 1, 2 and as many KV heads as query heads, by loops in float64."""
    differ = 0

    def check(family, ids, budget):
        nonlocal differ
        tokens, kv_heads = ids.shape[1], engine(family).config.num_key_value_heads
        if budget <= WINDOW or budget >= tokens:
            return
        kept = kept_by(SnapKV(WINDOW, KERNEL, pooling, "group"), ids, family, budget)
        before = kept_by(SnapKV(WINDOW, KERNEL, pooling, "heads"), ids, family, budget)
        for layer, attention in enumerate(attention_of(family, ids)):
            for sample, weights in enumerate(attention):
                scores = grouped(weights.tolist(), kv_heads, pooling)
                expected = naive_scores.with_window(scores, [budget] * kv_heads, tokens, WINDOW)
                assert kept[layer][sample] == expected, (family, layer)
                differ += kept[layer][sample] != before[layer][sample]

    without_ties(12, check)
    assert (differ > 10) == (pooling == "max")  # averages commute with averages


def test_without_groups_the_order_does_not_matter():
    """Where every query head has a KV head of its own, both orders are one method."""
    ids = prompt(60, 2, seed=4)
    one, other = (kept_by(SnapKV(WINDOW, KERNEL, "max", order), ids, "qwen2", 20) for order in ("heads", "group"))
    assert one == other


@pytest.mark.parametrize("wrapped", [lambda base: AdaKV(base, 0.2), lambda base: PyramidKV(**vars(base))])
def test_what_builds_on_snapkv_takes_its_order(wrapped):
    """Ada-KV and PyramidKV spread budgets over scores of either order."""
    ids = prompt(80, 1, seed=9)
    found = engine("llama").prefill(ids, [base := SnapKV(WINDOW, pool_after="group"), own := wrapped(base)])
    for theirs, mine in zip(found.observer.scores[base], found.observer.scores[own], strict=True):
        assert torch.equal(theirs, mine)
    plain = wrapped(SnapKV(WINDOW))
    assert kept_by(own, ids, "llama", 24) != kept_by(plain, ids, "llama", 24)


def test_the_official_variants_average_the_group_first():
    """By their repositories: AdaKV and KVCache-Factory reduce a group before pooling; kvpress and SnapKV's do not."""
    methods = configured()
    orders = {name: getattr(method, "base", method) for name, method in methods.items()}
    orders = {name: method.pool_after for name, method in orders.items() if isinstance(method, SnapKV)}
    official = {"snapkv_factory", "ada_snapkv_official_pooling", "pyramidkv_official_pooling"}
    assert {name for name, order in orders.items() if order == "group"} == official
    assert {"snapkv", "snapkv_original", "snapkv_kvpress", "ada_snapkv", "pyramidkv"} < set(orders)
    assert methods["ada_snapkv_official_pooling"] == AdaKV(SnapKV(pool_after="group"))
    assert methods["pyramidkv_official_pooling"] == PyramidKV(8, pool_after="group")


def test_an_unknown_order_is_refused():
    """One line that lists the options."""
    with pytest.raises(UserError, match="pool_after must be heads or group, not 'layer'"):
        SnapKV(pool_after="layer")
