"""Q-Filters, Expected Attention with statistics, DuoAttention, HeadKV: kept sets by made files, and misfits."""

import json
from functools import cache
from itertools import pairwise

import pytest
import torch
from safetensors.torch import save_file

import naive_files
import naive_scores
from beside_dense import followed
from kept_sets import attention_of, cached, heads_of, kept_sets, sets_of, without_ties
from methods.duo_attention import DuoAttention
from methods.expected_attention_stats import ExpectedAttentionStats
from methods.headkv import HeadKV
from methods.qfilters import QFilters
from pvcbench.engine.evict import Cell
from pvcbench.errors import MethodError
from pvcbench.evaluation.preflight import try_method
from pvcbench.policy import OutOfReach, UserError
from tiny import engine, fork, prompt, teach, unmodified

pytestmark = pytest.mark.usefixtures("inference")
FAMILIES = ("llama", "qwen2", "qwen3", "gemma3")


@cache
@torch.inference_mode()  # the model may have been made inside of it by another test
def sizes(family):
    """Layers, query heads, KV heads and head size."""
    config = unmodified(family).config
    keys = cached(family, prompt(3))[0][0]
    return config.num_hidden_layers, config.num_attention_heads, keys.shape[1], keys.shape[-1]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """What each family's files hold, and where they lie."""
    made, folder = {}, tmp_path_factory.mktemp("files")
    for number, family in enumerate(FAMILIES):
        layers, heads, kv_heads, dim = sizes(family)
        drawn = torch.Generator().manual_seed(number)
        square = torch.randn(layers, heads, dim, dim, generator=drawn)
        tensors = {
            "q_filters": torch.randn(layers, kv_heads, dim, generator=drawn),
            "query_mean": torch.randn(layers, heads, dim, generator=drawn),
            "query_cov": square @ square.mT / dim,
        }
        needed = torch.rand(layers, kv_heads, generator=drawn, dtype=torch.float64) * 1.4 - 0.2
        told = {
            f"{layer}-{head}": torch.rand(3, generator=drawn).tolist()
            for layer in range(layers)
            for head in range(heads)
        }
        places = {kind: folder / f"{family}.{kind}" for kind in ("safetensors", "tsv", "json")}
        save_file(tensors, places["safetensors"])
        places["tsv"].write_text("\n".join("\t".join(map(repr, row)) for row in needed.tolist()))
        places["json"].write_text(json.dumps(told))
        made[family] = places | {"tensors": tensors, "needed": needed.tolist(), "told": told}
    return made


# ---------------------------------------------------------------------------------------------- kept sets


@pytest.mark.parametrize("recent", [0, 5])
def test_qfilters_keep_what_the_naive_ones_keep(files, recent):
    """The largest negative products with the stored filter, by layer and KV head."""

    def check(family, ids, budget):
        tokens, kept = ids.shape[1], sets_of(QFilters(files[family]["safetensors"], recent), ids, family, budget)
        filters = files[family]["tensors"]["q_filters"].double().tolist()
        for layer, (keys, _) in enumerate(cached(family, ids)):
            for sample, sets in enumerate(kept[layer]):
                for head, found in enumerate(sets):
                    scores = naive_files.products(keys[sample, head].tolist(), filters[layer][head])
                    older = {j: one for j, one in scores.items() if j < tokens - recent}
                    newest = set(range(tokens - recent, tokens))
                    assert found == newest | naive_scores.best(older, budget - recent), (family, layer)

    without_ties(20, check)


def test_qfilters_evict_the_lowest_while_decoding(files):
    """Under hold a new entry competes by its own product."""
    host, ids, fed = engine("llama"), prompt(30, 2, seed=5), prompt(9, 2, seed=6)
    groups = fork(host, ids, [Cell("x", QFilters(files["llama"]["safetensors"]), 12, True)], 9)
    trace, filters = teach(host, groups, fed, [1] * 9), files["llama"]["tensors"]["q_filters"].double().tolist()
    keys = cached("llama", torch.cat((ids, fed), 1))[0][0]  # of the first layer, which eviction does not change
    for (_, _, before), (seen, _, after) in pairwise(trace.kept[0]):
        for sample, (old, new) in enumerate(zip(kept_sets(None, 0, before), kept_sets(None, 0, after), strict=True)):
            for head in range(2):
                scores = naive_files.products(keys[sample, head].tolist(), filters[0][head])
                there = old[head] | {seen - 1}
                assert new[head] == naive_scores.best({j: scores[j] for j in there}, 12)


@pytest.mark.parametrize("settings", [{}, {"covariance": False, "value_norm": False, "sinks": 0}], ids=["all", "bare"])
def test_expected_attention_with_statistics_is_the_naive_one(files, settings):
    """Scores to 1e-5 (rotary tables are float32), kept sets exactly where no two scores are that close."""
    compared, options = 0, {"horizon": 40} | settings
    for case in range(21):
        family, ids = FAMILIES[case % 3], prompt(30 + 2 * case, 2, case)
        method, tensors = ExpectedAttentionStats(files[family]["safetensors"], **options), files[family]["tensors"]
        [group] = fork(engine(family), ids, [Cell("x", method, 14)], 0)
        frequencies, kv_heads = unmodified(family).model.rotary_emb.inv_freq.double(), heads_of(family)
        for layer, (keys, values) in enumerate(cached(family, ids)):
            means, spreads = (
                tensors[name][layer].double().unflatten(0, (kv_heads, -1)) for name in ("query_mean", "query_cov")
            )
            rotation = naive_scores.mean_rotation(frequencies, keys.shape[-1], ids.shape[1], 40)
            for sample, sets in enumerate(kept_sets(group, layer)):
                for head, found in enumerate(sets):
                    moments, first = list(zip(means[head], spreads[head], strict=True)), method.sinks
                    flags = first, method.covariance, method.value_norm
                    naive = naive_scores.expected_of(
                        moments, rotation, keys[sample, head], values[sample, head], *flags
                    )
                    own = group.prefill.observer.scores[method][layer][sample, head, first:]
                    torch.testing.assert_close(own.double(), naive, rtol=1e-5, atol=1e-9)
                    order = naive.sort(descending=True)
                    if order.values[13 - first] - order.values[14 - first] > 1e-4 * order.values[14 - first]:
                        assert found == set((order.indices[: 14 - first] + first).tolist()) | set(range(first))
                        compared += 1
    assert compared > 200


def test_duo_attention_keeps_what_the_naive_one_keeps(files):
    """The heads with the lowest numbers stream, one of them with a longer window; the sum is the budget's."""
    cut = 0

    def check(family, ids, budget):
        nonlocal cut
        tokens = ids.shape[1]
        kept = sets_of(DuoAttention(files[family]["tsv"], 4, 6), ids, family, budget)
        if kept is None:
            return
        expected = naive_files.streaming_sizes(files[family]["needed"], budget, tokens, 10)
        assert sum(map(sum, expected)) == sum(map(len, expected)) * min(budget, tokens)
        for layer, own in enumerate(expected):
            for sets in kept[layer]:
                assert sets == [set(range(4)) | set(range(tokens - size + 4, tokens)) for size in own], (family, layer)
            cut += sum(size == 10 for size in own)

    without_ties(20, check)
    assert cut > 40


def test_duo_attention_by_a_share_streams_that_many_heads(files):
    """No budget: of 4 x 2 heads half stream, those with the lowest numbers, and the others keep everything."""
    method, host = DuoAttention(files["llama"]["tsv"], 4, 6, streaming=0.5), engine("llama")
    assert method.own_budget == "streaming 0.5" and method.resolve(None, host.shape(40)) == method
    [group] = fork(host, prompt(40), [Cell("x", method, None)], 0)
    found = [[len(head) for head in kept_sets(group, layer)[0]] for layer in range(4)]
    assert found == naive_files.streaming_sizes(files["llama"]["needed"], 25, 40, 10)


@pytest.mark.parametrize("beta, power", [(1.01, 1.0), (2.0, 1.5)])
def test_headkv_keeps_what_the_naive_one_keeps(files, beta, power):
    """SnapKV's choice, with each KV head's size; the sum is the budget's."""
    uneven, full = 0, 0

    def check(family, ids, budget):
        nonlocal uneven, full
        tokens, window = ids.shape[1], 4
        kept = sets_of(HeadKV(window, file=files[family]["json"], beta=beta, temperature=power), ids, family, budget)
        if kept is None or budget >= tokens:
            return
        asked = budget - window, tokens - window
        expected = naive_files.importance_sizes(files[family]["told"], sizes(family)[:3], asked, beta, power)
        assert sum(map(sum, expected)) == sum(map(len, expected)) * (budget - window)
        flat = [size for row in expected for size in row]
        uneven, full = uneven + (len(set(flat)) > 2), full + (max(flat) == tokens - window)
        for layer, attention in enumerate(attention_of(family, ids)):
            for sample, sets in enumerate(kept[layer]):
                scores = naive_scores.snapkv(attention[sample].tolist(), heads_of(family), window, 7, "max")
                own = [size + window for size in expected[layer]]
                assert sets == naive_scores.with_window(scores, own, tokens, window), (family, layer)

    without_ties(20, check)
    assert uneven > 10 and full > 0


# ---------------------------------------------------------------------------------------------- on any model


def made(files, family):
    """One method of each kind for a family."""
    own = files[family]
    return [
        QFilters(own["safetensors"]), ExpectedAttentionStats(own["safetensors"], horizon=20),
        DuoAttention(own["tsv"], 4, 6), HeadKV(4, file=own["json"]),
    ]  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_logits_are_those_of_dense_attention_under_the_mask(files, family):
    """Also where some layers slide: those that evict read their own rows of the file."""
    for method in made(files, family):
        try_method(engine(family), method, hold=True)
        ids, fed = prompt(50, 2), prompt(6, 2, seed=1)
        for cell, prefill, kept, mine, dense in followed(family, ids, fed, method, [1, 2, 3]):
            torch.testing.assert_close(mine, dense[:, [50, 52, 55]], rtol=1e-9, atol=1e-9)
            heads = [head for layer in prefill.shape.evicted for head in kept_sets(None, layer, kept[0])[0]]
            assert sum(map(len, heads)) == cell.budget * len(heads), type(method).__name__


# ---------------------------------------------------------------------------------------------- files that misfit


def test_a_file_of_another_model_is_one_line_before_anything_is_measured(files):
    """By what the file has and what the model has."""
    others = {
        QFilters: (
            files["qwen3"]["safetensors"],
            r"q_filters is \[4, 1, 12\].* \[4, 2, 8\] .layers, KV heads, head size",
        ),
        ExpectedAttentionStats: (files["gemma3"]["safetensors"], r"query_mean is \[6, 4, 8\], .* \[4, 4, 8\]"),
        DuoAttention: (files["qwen2"]["tsv"], "4 rows of 4 numbers, and this model has 4 layers of 2 KV heads"),
        HeadKV: (files["gemma3"]["json"], 'names 24 heads, and this model has 4 layers of 4: .* to "3-3"'),
    }
    for kind, (path, told) in others.items():
        with pytest.raises(UserError, match=told) as error:
            try_method(engine("llama"), kind(file=path))
        assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_what_a_file_lacks_is_told(files, tmp_path):
    """Another tensor, NaN, a head without numbers, a pickle; a missing file is told before a model is there."""
    save_file({"filters": torch.ones(4, 2, 8)}, tmp_path / "other")
    save_file({"q_filters": torch.full((4, 2, 8), torch.nan)}, tmp_path / "nan")
    torch.save({"q_filters": torch.ones(4, 2, 8)}, tmp_path / "pickle")
    (tmp_path / "empty").write_text(json.dumps(files["llama"]["told"] | {"1-2": []}))
    (tmp_path / "list").write_text("[1, 2]")
    for method, told in (
        (QFilters(tmp_path / "other"), "holds no q_filters, only filters"),
        (QFilters(tmp_path / "nan"), "q_filters has NaN"),
        (QFilters(tmp_path / "pickle"), "is a pickle, .*python -c"),
        (HeadKV(file=tmp_path / "empty"), "every head must have a list"),
        (HeadKV(file=tmp_path / "list"), "names 0 heads"),
        (DuoAttention(tmp_path / "list"), "line 1: wanted numbers"),
    ):
        with pytest.raises(UserError, match=told):
            try_method(engine("llama"), method)
    for kind in (QFilters, ExpectedAttentionStats, DuoAttention, HeadKV):
        assert kind().unnamed
        with pytest.raises(UserError, match=r"methods\.x\.file: there is no file"):
            kind(file=tmp_path / "none").validate("methods.x")


def test_what_makes_no_sense_is_refused(files):
    """Settings without a meaning are the user's error; budgets below what always stays are out of reach."""
    for make in (
        lambda: QFilters(recent=-1),
        lambda: DuoAttention(streaming=1.5),
        lambda: DuoAttention(recent=0),
        lambda: HeadKV(beta=0.5),
        lambda: HeadKV(temperature=0.0),
    ):
        with pytest.raises(UserError):
            make()
    shape = engine("llama").shape(500)
    for method, least in ((QFilters(recent=9), 9), (DuoAttention(), 384), (HeadKV(), 33)):
        with pytest.raises(OutOfReach):
            method.resolve(least - 1, shape)
        assert method.resolve(least, shape) == method
    with pytest.raises((UserError, MethodError)):
        try_method(engine("llama"), DuoAttention(files["llama"]["json"]))
