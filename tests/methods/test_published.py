"""LagKV, ChunkKV, CurDKV, SimLayerKV, Compactor, CAKE, Scissorhands: kept sets as naive_published has them."""

from dataclasses import replace

import pytest
import torch

import naive_published as naive
from kept_sets import attention_of, cached, heads_of, kept_sets, without_ties
from methods.cake import CAKE
from methods.cake_layers import shared
from methods.chunkkv import ChunkKV
from methods.compactor import Compactor
from methods.curdkv import CurDKV
from methods.gaussian import gaussian
from methods.lagkv import LagKV
from methods.leverage_score import LeverageScore, leverage, sketching
from methods.non_causal_attention import NonCausalAttention
from methods.scissorhands import Scissorhands
from methods.simlayerkv import SimLayerKV
from methods.snapkv import SnapKV
from naive_scores import best, snapkv, with_window
from pvcbench.engine.evict import Cell
from pvcbench.policy import Observation, OutOfReach, Shape, UserError
from tiny import engine, prompt, unmodified

pytestmark = pytest.mark.usefixtures("inference")
DRAWS = torch.tensor([7, 2**41 + 5])


def sets_of(method, ids, family, budget, draws=None):
    """What a method keeps of a prompt, as [layer][sample][head]; None where the budget is out of its reach."""
    host = engine(family)
    try:
        method = method.resolve(budget, host.shape(ids.shape[1]))
    except OutOfReach:
        return None
    prefill = host.prefill(ids, [method], draws=draws)
    [group] = host.fork(prefill, [Cell("x", method, budget)], 0)
    return [kept_sets(group, layer) for layer in range(len(group.layers))]


def by_head(family, ids):
    """Layer, sample, head, keys and values of each KV head as lists."""
    for layer, (keys, values) in enumerate(cached(family, ids)):
        for sample in range(len(ids)):
            for head in range(keys.shape[1]):
                yield layer, sample, head, keys[sample, head].tolist(), values[sample, head].tolist()


def plain_keys(family, ids):
    """The keys before rotary embedding of each layer, [batch, heads, tokens, dim], as the layers' own modules give."""
    model, found, hooks = unmodified(family), [], []
    heads = heads_of(family)
    for layer in model.model.layers:
        module = getattr(layer.self_attn, "k_norm", layer.self_attn.k_proj)
        hooks.append(module.register_forward_hook(lambda _, __, out: found.append(out)))
    try:
        model(ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return [one.reshape(*ids.shape, heads, -1).transpose(1, 2) for one in found]


def observed(keys, values, tokens):
    """A layer of given keys and values, as a method sees it."""
    batch, heads = keys.shape[:2]
    shape = Shape(tokens, 1, (0,))
    positions = torch.arange(tokens).expand(batch, heads, -1)
    return Observation(0, shape, tokens, keys, values, positions, None, None, DRAWS[:batch], tokens)


# ---------------------------------------------------------------------------------------------- LagKV


@pytest.mark.parametrize("sinks, lag", [(4, 8), (0, 5), (3, 40)])
def test_lagkv_keeps_what_the_naive_one_keeps(sinks, lag):
    """Ranks within partitions by the next one's extremes, the last partition and the rest whole."""
    compared = 0

    def check(family, ids, budget):
        nonlocal compared
        kept = sets_of(LagKV(sinks, lag), ids, family, budget)
        for layer, sample, head, keys, values in by_head(family, ids) if kept is not None else ():
            ranks, stay = naive.lagkv(keys, values, sinks, lag)
            expected = stay | best(ranks, max(0, budget - len(stay)))
            assert kept[layer][sample][head] == expected, (family, layer, head)
            compared += 1

    without_ties(30, check)
    assert compared >= 20 * 2 * 4


def test_lagkv_keeps_1216_of_4096_at_a_quarter():
    """With 16 sinks and partitions of 128: 16, 32 of each of 30, one whole and 112 more."""
    generator = torch.Generator().manual_seed(3)
    keys, values = torch.randn(2, 1, 2, 4096, 8, generator=generator)
    method, seen = LagKV(16, 128), observed(keys, values, 4096)
    first, last = method.protects(1216, seen.shape)
    assert (first, last) == (16, 128 + 112) and first + last + 30 * 32 == 1216
    top = method.scores(seen).sort(dim=-1, descending=True, stable=True).indices[..., : 30 * 32]
    counts = torch.stack([((top - 16) // 128 == part).sum(-1) for part in range(30)])
    assert (counts == 32).all()


def test_lagkv_takes_a_constant_channel_for_nothing():
    """Where the next partition has one number only, scores stay finite and rest on the other channels."""
    keys, values = torch.randn(2, 1, 1, 64, 4, generator=torch.Generator().manual_seed(1))
    keys[..., 2] = 1.5
    scores = LagKV(4, 16).scores(observed(keys, values, 64))
    assert scores.isfinite().all() and len(scores[0, 0, 4:36].unique()) == 16


# ---------------------------------------------------------------------------------------------- ChunkKV


@pytest.mark.parametrize("chunk", [1, 7, 20])
def test_chunkkv_keeps_what_the_naive_one_keeps(chunk):
    """Chunks of SnapKV's scores, summed over heads; all heads of a layer keep the same."""
    base = SnapKV(4, 7, "max")

    def check(family, ids, budget):
        tokens = ids.shape[1]
        kept = sets_of(ChunkKV(base, chunk), ids, family, budget)
        if kept is None:
            return
        for layer, attention in enumerate(attention_of(family, ids)):
            for sample, sets in enumerate(kept[layer]):
                scores = naive.chunked(snapkv(attention[sample].tolist(), heads_of(family), 4, 7, "max"), chunk)
                expected = with_window([scores], [min(budget, tokens)], tokens, 4)
                assert sets == expected * len(sets), (family, layer)

    without_ties(20, check)


# ---------------------------------------------------------------------------------------------- CurDKV


@pytest.mark.parametrize("sinks, block, projection", [(4, 16, 0), (0, 5, 0), (4, 16, 20)])
def test_curdkv_keeps_what_the_naive_one_keeps(sinks, block, projection):
    """Shares of squared norms within blocks, keys' times values'; with one Gaussian matrix for both, or none."""

    def check(family, ids, budget):
        kept = sets_of(CurDKV(sinks, block, projection), ids, family, budget, DRAWS)
        for layer, sample, head, *parts in by_head(family, ids):
            if projection:
                seen = replace(observed(*torch.zeros(2, 2, 1, 1, len(parts[0][0])), 1), layer=layer)
                matrix = gaussian(seen, len(parts[0][0]), projection)[sample].double() / projection**0.5
                narrow = [(torch.tensor(part, dtype=torch.float64) @ matrix).tolist() for part in parts]
            scores = dict(enumerate(naive.curdkv(*(narrow if projection else parts), block)))
            scores = {j: score for j, score in scores.items() if j >= sinks}
            assert kept[layer][sample][head] == set(range(sinks)) | best(scores, budget - sinks), (family, layer)

    without_ties(20, check)


def test_a_short_last_block_ranks_higher():
    """Of equal entries, those of a block of 4 share 1 among 4, those of a block of 16 among 16."""
    keys = torch.ones(1, 1, 20, 3)
    scores = CurDKV().scores(observed(keys, keys, 20))[0, 0]
    assert scores[:16].tolist() == pytest.approx([1 / 256] * 16) and scores[16:].tolist() == pytest.approx([1 / 16] * 4)


# ---------------------------------------------------------------------------------------------- SimLayerKV


def test_simlayerkv_keeps_what_the_naive_one_keeps():
    """The laziest layers keep sinks and recent tokens; one of them a longer window; the sum is the budget's."""
    method, cut = SimLayerKV(4, 6), 0

    def check(family, ids, budget):
        nonlocal cut
        tokens = ids.shape[1]
        for sample in range(len(ids)):
            alone = ids[sample : sample + 1]
            kept = sets_of(method, alone, family, budget)
            if kept is None:
                return
            lazy = [naive.laziness(attention[0], 4, 6) for attention in attention_of(family, alone)]
            sizes = naive.cut_layers(lazy, budget, tokens, 10)
            assert sum(sizes) == len(sizes) * min(budget, tokens)
            for size, [sets] in zip(sizes, kept, strict=True):
                assert sets == [set(range(4)) | set(range(tokens - size + 4, tokens))] * len(sets)
                cut += size == 10

    without_ties(20, check)
    assert cut > 20


def test_simlayerkv_by_threshold_cuts_the_layers_above_it():
    """No budget: a layer is cut where its newest row looks at sinks and recent tokens for more than the threshold."""
    host, ids, sizes = engine("llama"), prompt(60, 1, seed=4), set()
    lazy = [naive.laziness(attention[0], 4, 6) for attention in attention_of("llama", ids)]
    for threshold in (0.0, sorted(lazy)[1] + 1e-9, 1.0):
        method = SimLayerKV(4, 6, threshold)
        assert method.own_budget is not None and method.resolve(None, host.shape(60)) == method
        [group] = host.fork(host.prefill(ids, [method]), [Cell("x", method, None)], 0)
        expected = [10 if one > threshold else 60 for one in lazy]
        assert [len(kept_sets(group, layer)[0][0]) for layer in range(4)] == expected
        sizes.add(sum(expected))
    assert len(sizes) == 3


# ---------------------------------------------------------------------------------------------- Compactor


def parts_of(family, ids, inner, sketch, chunk):
    """For each layer and sample, leverage and received attention by head of the entries in `inner`."""
    captured = engine(family).prefill(ids, capture=ids.shape[1])
    layers = zip(plain_keys(family, ids), cached(family, ids), strict=True)
    for layer, (plain, (keys, values)) in enumerate(layers):
        seen = replace(observed(keys, values, ids.shape[1]), layer=layer)
        matrices, group = sketching(seen, sketch).double(), captured.queries[layer].shape[1] // keys.shape[1]
        for sample in range(len(ids)):
            odd, attended = [], []
            for head in range(keys.shape[1]):
                queries = captured.queries[layer][sample, head * group : (head + 1) * group, inner]
                entries = keys[sample, head, inner], values[sample, head, inner]
                odd.append(naive.leverage(plain[sample, head, inner], matrices[sample, head], 0.01))
                attended.append(naive.received(queries, *entries, chunk))
            yield layer, sample, odd, attended


@pytest.mark.parametrize("name", ["leverage_score", "non_causal_attention", "compactor"])
def test_compactor_and_its_halves_keep_what_the_naive_ones_keep(name):
    """Leverage of the keys before rotary embedding, attention within chunks, and both blended by what is removed."""
    halves = {"leverage_score": LeverageScore(6), "non_causal_attention": NonCausalAttention(16)}
    first, last = (8, 4) if name == "compactor" else (0, 0)

    def check(family, ids, budget):
        tokens = ids.shape[1]
        method = halves.get(name, Compactor(sketch=6, chunk=16))
        kept = sets_of(method, ids, family, budget, DRAWS)
        if kept is None:
            return
        beta, inner = max(0.0, 1 - budget / tokens), slice(first, tokens - last)
        for layer, sample, odd, attended in parts_of(family, ids, inner, 6, 16):
            scores = {"leverage_score": odd, "non_causal_attention": attended}.get(name)
            if scores is None:
                pairs = zip(naive.standard(odd), naive.standard(attended), strict=True)
                scores = [[beta * a + b for a, b in zip(*pair, strict=True)] for pair in pairs]
            stay = {*range(first), *range(tokens - last, tokens)}
            for head, own in enumerate(scores):
                expected = stay | best(dict(enumerate(own, first)), max(0, budget - len(stay)))
                differ = sorted(own[j - first] for j in kept[layer][sample][head] ^ expected)
                assert len(kept[layer][sample][head]) == len(expected), (family, layer, head)
                if differ and not naive.close(differ[0], differ[-1]):  # a token said twice has one key before RoPE
                    raise AssertionError((family, layer, head))

    without_ties(20, check)


def test_leverage_sums_to_the_width_of_the_sketch():
    """Without jitter the scores of a head are the trace of a projection: 48, and fewer where keys have fewer axes."""
    keys = torch.randn(2, 3, 300, 64, generator=torch.Generator().manual_seed(2))
    sketch = sketching(observed(keys, keys, 300), 48)
    assert leverage(keys, sketch, 1e-9).sum(-1).flatten().tolist() == pytest.approx([48] * 6)
    assert (leverage(keys, sketch, 0.01).sum(-1) < 48).all()


def test_a_gaussian_matrix_is_a_function_of_sample_and_layer():
    """The same in any batch, another for another sample or layer."""
    keys = torch.zeros(2, 1, 5, 4)
    seen = observed(keys, keys, 5)
    other = replace(observed(keys[1:], keys[1:], 5), draws=DRAWS[1:])
    both, alone = gaussian(seen, 4, 3), gaussian(other, 4, 3)
    assert torch.equal(both[1:], alone) and not torch.equal(both[0], both[1])
    assert not torch.equal(gaussian(replace(seen, layer=1), 4, 3), both)
    assert torch.equal(gaussian(seen, 4, 3), both)


# ---------------------------------------------------------------------------------------------- CAKE


@pytest.mark.parametrize("tau1, tau2", [(1.0, 1.0), (1.6, 0.4)])
def test_cake_keeps_what_the_naive_one_keeps(tau1, tau2):
    """Layers by entropy and variance of the window's rows, entries by mean and variance, each sample by itself."""
    method, uneven, full = CAKE(window=4, tau1=tau1, tau2=tau2), 0, 0

    def check(family, ids, budget):
        nonlocal uneven, full
        tokens, heads = ids.shape[1], heads_of(family)
        if budget >= tokens:
            return
        for sample in range(len(ids)):
            alone = ids[sample : sample + 1]
            attention = [layer[0] for layer in attention_of(family, alone)]
            preferences = [naive.cake_preference(one, 4, tau1, tau2) for one in attention]
            sizes = naive.cake_sizes(preferences, len(attention) * (budget - 4), tokens - 4)
            kept = sets_of(method, alone, family, budget)
            assert sum(sizes) == len(attention) * (budget - 4)
            uneven, full = uneven + (len(set(sizes)) > 1), full + (max(sizes) == tokens - 4)
            for layer, (size, one) in enumerate(zip(sizes, attention, strict=True)):
                scores = naive.cake(one, heads, 4, 5, 200.0)
                assert kept[layer][0] == with_window(scores, [size + 4] * heads, tokens, 4), (family, layer)

    without_ties(20, check)
    assert uneven > 10 and full > 0


def test_cake_shares_are_those_of_the_code():
    """Preferences of 1:2:3:6, 400 in all and at most 150 a layer give 51, 83, 116, 150; sums hold in several rounds."""
    assert shared([1.0, 2.0, 3.0, 6.0], 400, 150) == [51, 83, 116, 150]
    assert naive.cake_sizes([1.0, 2.0, 3.0 + 1e-3, 6.0 + 1e-2], 401, 150) == shared(
        [1, 2, 3 + 1e-3, 6 + 1e-2], 401, 150
    )
    assert shared([100, 9, 1, 1], 36, 10) == [10, 10, 8, 8] and shared([0.0, 0.0], 7, 10) == [4, 3]


# ---------------------------------------------------------------------------------------------- Scissorhands


@pytest.mark.parametrize("history", [400, 15])
def test_scissorhands_keeps_what_the_naive_one_keeps(history):
    """Counts of rows that gave an even share or more, the earlier of two equal ones first, and the newest."""

    def check(family, ids, budget):
        tokens = ids.shape[1]
        kept = sets_of(Scissorhands(6, history), ids, family, budget)
        for layer, attention in enumerate(attention_of(family, ids)):
            for sample, sets in enumerate(kept[layer]):
                scores = naive.scissorhands(attention[sample], heads_of(family), history)
                older = [{j: own[j] for j in range(tokens - 6)} for own in scores]
                assert sets == with_window(older, [min(budget, tokens)] * len(sets), tokens, 6), (family, layer)

    without_ties(20, check)


def test_what_makes_no_sense_is_refused():
    """Settings without a meaning are the user's error; budgets below what always stays are out of reach."""
    for make in (
        lambda: LagKV(lag=1),
        lambda: ChunkKV(chunk=0),
        lambda: CurDKV(block=0),
        lambda: SimLayerKV(threshold=2.0),
        lambda: LeverageScore(jitter=0.0),
        lambda: NonCausalAttention(0),
        lambda: Compactor(sketch=0),
        lambda: CAKE(window=1),
        lambda: Scissorhands(history=0),
    ):
        with pytest.raises(UserError):
            make()
    shape = Shape(300, 4, (0, 1, 2, 3))
    least = {LagKV(4, 128): 172, ChunkKV(): 33, CurDKV(): 4, SimLayerKV(4, 60): 64, CAKE(): 33, Scissorhands(): 10}
    for method, entries in (least | {Compactor(): 12}).items():
        with pytest.raises(OutOfReach):
            method.resolve(entries - 1, shape)
        assert method.resolve(entries, shape) is not None
