"""SnapKV and its kin, TOVA, Knorm, KeyDiff, value norms: kept sets against tests/helpers/naive_scores.py."""

from itertools import pairwise

import pytest
import torch

import naive
import naive_scores
from kept_sets import attention_of, cached, evicts_as, heads_of, kept_sets, without_ties
from methods.ada_kv import AdaKV
from methods.h2o import H2O
from methods.keydiff import KeyDiff
from methods.knorm import Knorm
from methods.layer_entropy import LayerEntropy, shared
from methods.observed_attention import ObservedAttention
from methods.pyramidkv import PyramidKV, pyramid
from methods.snapkv import SnapKV
from methods.tova import TOVA
from methods.value_norm import ValueNorm
from pvcbench.engine.evict import Cell
from pvcbench.policy import OutOfReach, UserError
from pvcbench.runs import identity
from tiny import engine, fork, prompt, teach

pytestmark = pytest.mark.usefixtures("inference")
POOLINGS = [(4, 7, "max"), (6, 5, "average"), (1, 1, "max"), (100, 7, "max")]  # the last: a window beyond the prompt
pooled = pytest.mark.parametrize("window, kernel, pooling", POOLINGS, ids=["max", "average", "bare", "all"])


def sets_of(method, ids, family, budget):
    """What a method keeps of a prompt, as [layer][sample][head]."""
    group = fork(
        engine(family), ids, [Cell("x", method.resolve(budget, engine(family).shape(ids.shape[1])), budget)], 0
    )
    return [kept_sets(group[0], layer) for layer in range(len(group[0].layers))]


def each_sample(family, ids, kept):
    """Layer, sample, its attention as lists, and what was kept there."""
    for layer, attention in enumerate(attention_of(family, ids)):
        for sample, sets in enumerate(kept[layer]):
            yield layer, attention[sample], sets


@pooled
def test_snapkv_keeps_what_the_naive_one_keeps(window, kernel, pooling):
    """The window, and per KV head the best pooled attention of the window's queries before it."""

    def check(family, ids, budget):
        tokens = ids.shape[1]
        if budget <= min(window, tokens - 1):
            return
        kept = sets_of(SnapKV(window, kernel, pooling), ids, family, budget)
        for layer, attention, sets in each_sample(family, ids, kept):
            scores = naive_scores.snapkv(attention.tolist(), heads_of(family), window, kernel, pooling)
            expected = naive_scores.with_window(scores, [min(budget, tokens)] * len(scores), tokens, window)
            assert sets == expected, (family, layer)

    without_ties(20, check)


def test_pyramidkv_keeps_what_the_naive_one_keeps():
    """SnapKV's choice at sizes that fall linearly with depth."""

    def check(family, ids, budget):
        tokens, window = ids.shape[1], 4
        if budget <= window:
            return
        kept = sets_of(PyramidKV(window=window), ids, family, budget)
        sizes = naive_scores.pyramid(budget, tokens, window, 20, len(kept))
        for layer, attention, sets in each_sample(family, ids, kept):
            scores = naive_scores.snapkv(attention.tolist(), heads_of(family), window, 7, "max")
            size = min(sizes[layer], tokens)
            assert sets == naive_scores.with_window(scores, [size] * len(scores), tokens, window), (family, layer)

    without_ties(20, check)


@pytest.mark.parametrize(
    "mean, most, layers", [(120, 4000, 32), (120, 200, 32), (7, 7, 4), (0, 10, 3), (993, 1017, 28)]
)
def test_a_pyramid_has_its_mean_and_falls(mean, most, layers):
    """The sum is exact, the first layer gets the formula's size, and no layer more than there is."""
    sizes = pyramid(mean, most, 20, layers).tolist()
    assert sum(sizes) == mean * layers and sizes[0] == min(2 * mean - mean // 20, most) and max(sizes) <= most
    assert all(after <= before + 1 for before, after in pairwise(sizes))  # + 1: rounding
    assert abs(sizes[-1] - (2 * mean - sizes[0])) <= 1


@pytest.mark.parametrize("floor", [0.0, 0.2, 1.0])
def test_ada_kv_keeps_what_the_naive_one_keeps(floor):
    """Heads of a layer get as many entries as they have among its best, mixed with equal shares; the sum is exact."""
    uneven = 0

    def check(family, ids, budget):
        nonlocal uneven
        tokens, window = ids.shape[1], 4
        if budget <= window or budget >= tokens:
            return
        kept = sets_of(AdaKV(SnapKV(window), floor), ids, family, budget)
        for layer, attention, sets in each_sample(family, ids, kept):
            scores = naive_scores.snapkv(attention.tolist(), heads_of(family), window, 7, "max")
            counts = naive_scores.ada(scores, budget, window, tokens, floor)
            uneven += len(set(counts)) > 1
            assert sets == naive_scores.with_window(scores, counts, tokens, window), (family, layer)
            assert sum(map(len, sets)) == budget * len(sets)

    without_ties(20, check)
    assert (uneven > 60) == (floor < 1.0)


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_layers_get_entries_by_the_spread_of_their_scores(temperature):
    """Running sums of the capped shares, rounded, by hand; then SnapKV's choice with each layer's size."""
    window, uneven, full = 4, 0, 0

    def check(family, ids, budget):
        nonlocal uneven, full
        tokens = ids.shape[1]
        if budget <= window or budget >= tokens - 1:
            return
        method = LayerEntropy(SnapKV(window), temperature)
        for sample in range(len(ids)):  # each by itself, as its property says
            alone = ids[sample : sample + 1]
            kept = sets_of(method, alone, family, budget)
            found = list(each_sample(family, alone, kept))
            scores = [naive_scores.snapkv(a.tolist(), heads_of(family), window, 7, "max") for _, a, _ in found]
            weights = naive_scores.layer_entropies(scores, temperature)
            ideal = naive_scores.capped(weights, len(scores) * (budget - window), tokens - window)
            sums = [sum(ideal[: number + 1]) for number in range(len(ideal))]
            if any(abs(one % 1 - 0.5) < 1e-6 for one in sums):
                raise naive_scores.Tie
            ends = [0, *map(round, sums)]
            sizes = [window + after - before for before, after in pairwise(ends)]
            uneven, full = uneven + (len(set(sizes)) > 1), full + (max(sizes) == tokens)
            assert sum(sizes) == budget * len(sizes)
            for (_, _, sets), own, size in zip(found, scores, sizes, strict=True):
                assert sets == naive_scores.with_window(own, [size] * len(own), tokens, window)

    without_ties(20, check)
    assert uneven > 10 and (full > 0 or temperature == 1.0)


def test_shares_are_capped_and_keep_their_sum():
    """What full layers cannot take goes to the others, in proportion, also in several rounds."""
    weights = torch.tensor([[100.0], [10.0], [3.0], [1.0]])
    assert shared(weights, 20.0, 10)[:, 0].tolist() == pytest.approx([10, 10 * 10 / 14, 10 * 3 / 14, 10 / 14])
    assert shared(weights, 26.0, 10)[:, 0].tolist() == pytest.approx([10, 10, 4.5, 1.5])
    assert shared(weights, 40.0, 10)[:, 0].tolist() == pytest.approx([10, 10, 10, 10])


def test_ada_kv_frees_what_its_heads_do_not_keep():
    """Ragged heads are measured as such: bytes are those of the filled entries."""
    ids = prompt(60, seed=3)
    group = fork(engine("qwen2"), ids, [Cell("x", AdaKV(SnapKV(4)), 20)], 0)[0]
    per_entry = 2 * group.layers[0].keys.shape[-1] * 8
    assert group.measure(0, 0).kv_bytes == 4 * heads_of("qwen2") * 20 * per_entry  # four layers, float64


def test_tova_keeps_what_the_naive_one_keeps():
    """The newest query's attention, averaged over all heads of the layer; one set for all KV heads."""

    def check(family, ids, budget):
        for layer, attention, sets in each_sample(family, ids, sets_of(TOVA(), ids, family, budget)):
            rule = naive_scores.TOVA(budget, heads_of(family))
            rule.prefill(attention)
            assert sets == rule.kept, (family, layer)

    without_ties(20, check)


@pytest.mark.parametrize("chunks", [[1] * 12, [3, 1, 2, 1, 1]], ids=["steps", "chunks"])
def test_tova_evicts_what_the_naive_one_evicts(chunks):
    """Under hold each step's own attention decides, and the logits are those of dense attention under the mask."""
    for family in ("llama", "qwen2"):
        evicts_as(
            lambda plan, family=family: naive_scores.TOVA(plan[0], heads_of(family)), TOVA(), family, 40, 17, chunks
        )


def test_mean_observed_attention_is_h2o_s_normalized_sum_without_protection():
    """kvpress' ObservedAttention: attention over the queries that see an entry, the mean of a group's heads."""

    def check(family, ids, budget):
        for layer, attention, sets in each_sample(family, ids, sets_of(ObservedAttention(), ids, family, budget)):
            rule = naive.H2O(budget, True, heads_of(family), last=0)
            rule.prefill(attention)
            assert sets == rule.kept, (family, layer)

    without_ties(20, check)


@pytest.mark.parametrize("name", ["knorm", "keydiff"])
def test_key_methods_keep_what_the_naive_ones_keep(name):
    """From the keys of transformers' own cache: small norms; far from the mean direction."""

    def check(family, ids, budget):
        kept = sets_of({"knorm": Knorm(), "keydiff": KeyDiff()}[name], ids, family, budget)
        for layer, (keys, _) in enumerate(cached(family, ids)):
            for sample, sets in enumerate(kept[layer]):
                for head, found in enumerate(sets):
                    own = dict(enumerate(keys[sample, head].tolist()))
                    scores = naive_scores.keydiff(own)
                    if name == "knorm":
                        scores = {j: -naive_scores.norm(key) for j, key in own.items()}
                    assert found == naive_scores.best(scores, budget), (family, layer, head)

    without_ties(20, check)


@pytest.mark.parametrize("name", ["knorm", "keydiff"])
def test_key_methods_evict_the_lowest_while_decoding(name):
    """Under hold, what goes in a step is the worst of what is there, the new entry included."""
    method, family = {"knorm": Knorm(), "keydiff": KeyDiff()}[name], "llama"
    host, ids, fed = engine(family), prompt(40, 2, seed=5), prompt(9, 2, seed=6)
    groups = fork(host, ids, [Cell("x", method, 15, True)], 9)
    grown = fork(host, ids, [Cell("x", method, 15, False)], 9)  # in its first step it holds what is about to be judged
    before = teach(host, grown, fed[:, :1], [1])
    after = teach(host, groups, fed[:, :2], [1, 1])
    assert len(before.kept[0]) == 1
    for layer in range(4):
        entries, found = grown[0].layers[layer], kept_sets(None, layer, after.kept[0][1][2])
        for sample in range(2):
            for head in range(2):
                places = entries.positions[sample, head, : entries.filled].tolist()
                own = dict(zip(places, entries.keys[sample, head, : entries.filled].tolist(), strict=True))
                scores = naive_scores.keydiff(own)
                if name == "knorm":
                    scores = {j: -naive_scores.norm(key) for j, key in own.items()}
                assert found[sample][head] == naive_scores.best(scores, 15)


@pytest.mark.parametrize("base", [H2O(), SnapKV(4, 5, "average")], ids=["h2o", "snapkv"])
def test_value_norms_multiply_the_scores(base):
    """The base's scores, entry by entry, times the length of the value in transformers' own cache."""
    host, ids = engine("llama"), prompt(50, 2, seed=8)
    method = ValueNorm(base)
    found = host.prefill(ids, [base, method]).observer.scores
    for (_, values), own, weighted in zip(cached("llama", ids), found[base], found[method], strict=True):
        torch.testing.assert_close(weighted, own * values.square().sum(-1).sqrt(), rtol=1e-9, atol=1e-12)
    kept = sets_of(method, ids, "llama", 20)
    assert kept != sets_of(base, ids, "llama", 20)


def test_what_makes_no_sense_is_refused():
    """Even kernels, unknown poolings, floors beyond 1, pruning bases; budgets within the window are out of reach."""
    for make in (
        lambda: SnapKV(kernel=4),
        lambda: SnapKV(pooling="mean"),
        lambda: SnapKV(window=0),
        lambda: PyramidKV(beta=0),
        lambda: AdaKV(floor=1.5),
        lambda: LayerEntropy(temperature=0.0),
    ):
        with pytest.raises(UserError):
            make()
    shape = engine("llama").shape(50)
    for method in (SnapKV(16), PyramidKV(16), AdaKV(SnapKV(16)), ValueNorm(SnapKV(16)), LayerEntropy(SnapKV(16))):
        with pytest.raises(OutOfReach, match="window of 16"):
            method.resolve(16, shape)
        assert method.resolve(17, shape) == method


def test_a_wrapped_or_derived_method_is_told_by_both():
    """What wraps or derives from another changes its run's id with the other's class, settings and file."""
    one, other = (identity.of_method(ValueNorm(base)) for base in (H2O(), SnapKV()))
    assert one["settings"]["base"]["class"] == "H2O" and one != other
    assert identity.of_method(PyramidKV())["source"] != identity.of_method(SnapKV())["source"]
    assert one["settings"]["base"] == identity.of_method(H2O())
