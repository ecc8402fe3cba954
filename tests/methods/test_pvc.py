"""PvC against its description: closed forms, the solver, kept sets, block compression, the official code's traps."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import naive
from kept_sets import attention_of, kept_sets
from methods.pvc import PvC
from methods.pvc_ladder import ladder, mean_entries, solve
from pvcbench.engine.engine import Engine
from pvcbench.engine.evict import Cell
from pvcbench.policy import OutOfReach, Shape, UserError
from tiny import build, configured, dense, dense_masks, engine, fork, prompt, teach, unmodified

pytestmark = pytest.mark.usefixtures("inference")
CLOSE = {"rtol": 1e-9, "atol": 1e-9}  # float64, see test_engine.py


def shape_of(tokens, layers):
    """A prompt in a model whose every layer evicts."""
    return Shape(tokens, layers, tuple(range(layers)))


def share(method, tokens, layers):
    """The mean share of the prompt that a setting keeps."""
    return mean_entries(method, shape_of(tokens, layers)) / tokens


def twin(method):
    """The naive implementation with a method's settings."""
    return naive.PvC(
        method.recent_ratio,
        method.prefill_decay_ratio,
        method.schedule,
        method.layerwise_downsample_interval,
        method.min_context_length,
        method.streamingllm_sink_len,
        method.distance_weight,
        method.prune,
        method.select,
    )


# ---------------------------------------------------------------------------------------------- sizes in closed form

# Printed to 0.1%, so to half of that; the numbers are methods.md's
PRINTED = 0.0005 + 1e-9
COSINE = {0.95: 0.859, 0.9: 0.766, 0.8: 0.655, 0.7: 0.596, 0.5: 0.535, 0.3: 0.503, 0.0: 0.470}
CONSTANT = {0.95: 0.602, 0.9: 0.441, 0.8: 0.330}


@pytest.mark.parametrize("kind, table", [("cosine", COSINE), ("constant", CONSTANT)])
def test_means_of_32_layers_at_4096(kind, table):
    """The check values of a Llama-2-7B-like model."""
    for ratio, expected in table.items():
        assert share(PvC(schedule=kind, prefill_decay_ratio=ratio), 4096, 32) == pytest.approx(expected, abs=PRINTED)


@pytest.mark.parametrize("name, layers, expected", [
    ("pyramidinfer_7b", 32, 0.765),
    ("pyramidinfer_13b", 40, 0.723),
    ("pyramidinfer_70b", 80, 0.780),
])  # fmt: skip
def test_published_configurations_at_2048(name, layers, expected):
    """What the published settings keep, which is not the paper's 45.4%."""
    method = configured()[name]
    assert share(method, 2048, layers) == pytest.approx(expected, abs=PRINTED)
    assert method.resolve(None, shape_of(2048, layers)) == method  # a fixed point: budgets do not move it


@pytest.mark.parametrize("tokens, expected", [(512, 0.411), (1024, 0.380), (2048, 0.359), (4096, 0.347)])
def test_reach_of_30_layers(tokens, expected):
    """How far the cosine schedule gets down, by closed form and by what the solver meets and refuses."""
    shape = shape_of(tokens, 30)
    assert share(PvC(prefill_decay_ratio=0.0, recent_ratio=0.0), tokens, 30) == pytest.approx(expected, abs=PRINTED)
    budget = int((expected + 0.02) * tokens)
    assert abs(mean_entries(solve(PvC(), budget, shape), shape) - budget) <= 0.01 * tokens
    with pytest.raises(OutOfReach, match="below PvC's reach of"):
        # the solver takes 1% less than it can do, and a ratio just above 0, which meets the floor later, does 1% better
        solve(PvC(), int((expected - 0.025) * tokens), shape)


def test_reach_of_the_other_settings():
    """With a recent ratio of 0.2 the reach at 1k is 50.3%; a constant schedule gets to 9.6% by its 64-entry floor."""
    assert share(PvC(prefill_decay_ratio=0.0), 1024, 30) == pytest.approx(0.503, abs=PRINTED)
    shares = [share(PvC(0.0, step / 4000, "constant"), 1024, 30) for step in range(800)]
    assert min(shares) == pytest.approx(0.096, abs=PRINTED)


@pytest.mark.parametrize("ratio, recent, expected", [(0.01, 0.01, 0.35), (0.3, 0.2, 0.50), (0.7, 0.2, 0.60)])
def test_settings_of_fastkv(ratio, recent, expected):
    """FastKV's settings for 35, 50 and 60% on Llama-3-8B, which are the pruned prefill's sizes in round numbers."""
    found = share(PvC(prefill_decay_ratio=ratio, recent_ratio=recent), 4096, 32)
    assert found == pytest.approx(expected, abs=0.01)  # they are named by rounded percentages


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("interval", [1, 2, 3])
@pytest.mark.parametrize("prune", ["hidden_states", "kv"])
def test_the_ladder_equals_the_naive_one(kind, interval, prune):
    """Sizes layer by layer over lengths, ratios and floors, the very short prompts included."""
    for tokens in (1, 2, 5, 40, 81, 82, 83, 120, 517):
        for ratio in (0.0, 0.3717, 0.9013, 1.0):  # no share of a linear schedule ends on an integer
            for recent in (0.0, 0.2, 0.63):
                for floor in (0, 8, 64):
                    method = PvC(recent, ratio, kind, interval, floor, prune=prune)
                    rungs = ladder(method, shape_of(tokens, 9))
                    kept = rungs[:-1] if prune == "hidden_states" else rungs[1:]
                    assert kept == twin(method).sizes(tokens, 9), method


@pytest.mark.parametrize("name", ["pvc", "pvc_constant", "pvc_kv"])
@pytest.mark.parametrize("tokens, layers", [(200, 12), (1024, 30)])
def test_the_solver_meets_every_budget_within_1_percent(name, tokens, layers):
    """From the reach up to 96% it meets the budget to 1% of the prompt: no hole, and nothing else is changed."""
    method, shape = configured()[name], shape_of(tokens, layers)
    met, percents = [], range(5, 100, 7)
    for percent in percents:
        budget = int(percent / 100 * tokens)
        try:
            found = method.resolve(budget, shape)
        except OutOfReach:
            continue
        met.append(percent)
        assert abs(mean_entries(found, shape) - budget) <= 0.01 * tokens
        assert replace(found, prefill_decay_ratio=0.9, recent_ratio=0.2) == method
    assert len(met) >= 5
    assert met == [percent for percent in percents if percent >= met[0]]


@pytest.mark.parametrize("tokens", [82, 90, 200, 512, 2048])
@pytest.mark.parametrize("name, layers", [("pyramidinfer_7b", 32), ("pyramidinfer_13b", 40), ("pyramidinfer_70b", 80)])
@pytest.mark.sampled(5)
def test_published_counts_by_layer(name, layers, tokens):
    """What the engine keeps under the published settings is the official rule's count, in every layer."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": layers}
    host = Engine(LlamaForCausalLM(LlamaConfig(vocab_size=160, **sizes)).eval())
    method = configured()[name]
    cell = Cell("x", method.resolve(None, host.shape(tokens)), None)
    kept = fork(host, prompt(tokens), [cell], 1)[0].measure(0, 0).entries
    assert list(kept) == twin(method).sizes(tokens, layers)
    assert (kept[-1] < tokens) == (tokens > 82)  # below about 82 tokens nothing is pruned


# ---------------------------------------------------------------------------------------------- the prefill

SETTINGS = {
    "cosine": {},
    "linear": {"schedule": "linear"},
    "constant": {"schedule": "constant"},
    "interval2": {"layerwise_downsample_interval": 2},
    "weights": {"distance_weight": 3.0, "streamingllm_sink_len": 1},
    "no_recent": {"recent_ratio": 0.0},
    "mass": {"select": "mass"},
    "mass_constant": {"select": "mass", "schedule": "constant"},
    "kv": {"prune": "kv"},
    "kv_constant": {"prune": "kv", "schedule": "constant"},
    "kv_interval2": {"prune": "kv", "layerwise_downsample_interval": 2},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_kept_sets_equal_the_naive_ones(setting):
    """Layer by layer on 20 random prompts, lengths and ratios; the naive one knows no engine."""
    generator, done, tied, pruned = torch.Generator().manual_seed(5), 0, 0, 0
    while done < 20:
        tokens = int(torch.randint(30, 110, (), generator=generator))
        ratio = 0.3 + 0.65 * float(torch.rand((), generator=generator))
        method = replace(PvC(solve=False, prefill_decay_ratio=ratio, min_context_length=6), **SETTINGS[setting])
        ids = prompt(tokens, seed=done + tied)
        try:
            expected = twin(method).prefill(dense("llama_deep"), ids)
        except naive.Tie:
            tied += 1
            assert tied < 10, "too many ties for a test"
            continue
        group = fork(engine("llama_deep"), ids, [Cell("x", method, None)], 0)[0]
        for layer, kept in enumerate(expected):
            assert kept_sets(group, layer) == [[kept]], (tokens, ratio, layer)
        pruned += len(expected[-1]) < tokens
        done += 1
    assert pruned >= 18  # nearly all of them cut something


def test_rows_of_a_batch_have_their_own_indices_and_one_count():
    """Each sample keeps what it keeps alone, and all of them as many."""
    method, ids = PvC(solve=False, prefill_decay_ratio=0.6, min_context_length=6), prompt(60, 3)
    together = fork(engine("llama_deep"), ids, [Cell("x", method, None)], 0)[0]
    for layer in range(7):
        sets = kept_sets(together, layer)
        assert len({len(sample[0]) for sample in sets}) == 1
    assert len({frozenset(sample[0]) for sample in kept_sets(together, 6)}) == 3
    for sample in range(3):
        alone = fork(engine("llama_deep"), ids[sample : sample + 1], [Cell("x", method, None)], 0)[0]
        assert [kept_sets(alone, layer)[0] for layer in range(7)] == [
            kept_sets(together, layer)[sample] for layer in range(7)
        ]


def test_pruned_positions_are_not_computed_deeper():
    """Kept sets are nested, layers 0 and 1 keep everything, and the MLPs of deeper layers see fewer tokens."""
    host, seen = Engine(build("llama_deep")), []
    for layer in host.model.model.layers:
        layer.mlp.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    method = PvC(solve=False, prefill_decay_ratio=0.5, min_context_length=6)
    group = fork(host, prompt(90), [Cell("x", method, None)], 0)[0]
    sets = [kept_sets(group, layer)[0][0] for layer in range(7)]
    assert len(sets[0]) == len(sets[1]) == 90
    assert all(deeper <= above for above, deeper in pairwise(sets))
    assert seen[1:] == [len(kept) for kept in sets[1:]]
    assert seen[-1] < 60


def test_a_window_is_measured_by_positions_not_by_what_is_left():
    """Hard pruning in a model whose every layer slides: the gaps do not widen anybody's window."""
    method = PvC(0.1, 0.4, "constant", min_context_length=2, solve=False)
    host, ids, fed = engine("mistral_sliding"), prompt(90, 2), prompt(6, 2, seed=1)
    groups = fork(host, ids, [Cell("x", method, None)], 6)
    trace = teach(host, groups, fed, [1] * 6)
    expected = dense("mistral_sliding")(torch.cat((ids, fed), 1), dense_masks(trace.kept[0], groups[0].prefill, 96))
    torch.testing.assert_close(groups[0].prefill.logits, expected[:, 89], **CLOSE)
    torch.testing.assert_close(torch.stack(trace.logits, 1), expected[:, 90:], **CLOSE)
    positions = groups[0].prefill.layers[3].positions[0].tolist()
    assert not set(range(90 - 24, 90)) <= set(positions)  # there are gaps inside the last row's window


@pytest.mark.parametrize("prune", ["hidden_states", "kv"])
@pytest.mark.parametrize("tokens", [1, 2, 7, 60, 81])
def test_short_prompts_are_left_whole(tokens, prune):
    """Below about 82 tokens the floor of 64 leaves everything, and one token is a prompt too."""
    host, ids = engine("llama_deep"), prompt(tokens)
    group = fork(host, ids, [Cell("x", PvC(solve=False, prune=prune), None)], 1)[0]
    assert [entries.filled for entries in group.layers] == [tokens] * 7
    torch.testing.assert_close(group.prefill.logits, unmodified("llama_deep")(ids).logits[:, -1], **CLOSE)


def test_longer_prompts_are_cut():
    """From some 84 tokens on it does prune, or the test above says nothing."""
    group = fork(engine("llama_deep"), prompt(100), [Cell("x", PvC(solve=False), None)], 1)[0]
    assert group.layers[-1].filled < 100


@pytest.mark.parametrize("wrong", [
    {"schedule": "cosinus"},
    {"prune": "keys"},
    {"select": "top"},
    {"recent_ratio": 1.0},
    {"prefill_decay_ratio": 1.2},
    {"select": "mass"},
    {"select": "mass", "solve": False, "prune": "kv"},
])  # fmt: skip
def test_wrong_settings_are_refused(wrong):
    """Settings that mean nothing, and a promise of size that mass cannot keep."""
    with pytest.raises(UserError, match="pvc"):
        PvC(**wrong)


# ---------------------------------------------------------------------------------------------- while generating


def generation_rules(method, kept, layers, start, heads, batch):
    """One naive ring per layer and sample."""
    return [
        [
            naive.Generation(
                layer, layers, set(kept[layer][sample]), start, heads, method.recent_ratio, method.distance_weight
            )
            for sample in range(batch)
        ]
        for layer in range(layers)
    ]


GENERATIONS = {
    "tokens": ({}, [1] * 72),
    "recent": ({"recent_ratio": 0.45}, [1] * 72),
    "narrow": ({"recent_ratio": 0.02}, [1] * 50),
    "kv": ({"prune": "kv", "schedule": "constant"}, [1] * 60),
    "chunk": ({}, [9, 20] + [1] * 20),
    "long_chunk": ({"recent_ratio": 0.02}, [40] + [1] * 24),  # two blocks leave the window at once
}


@pytest.mark.parametrize("setting", GENERATIONS)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.sampled(4)
def test_blocks_are_compressed_as_by_a_ring_of_rows(family, setting):
    """Entries held before every step, and the logits, equal a simulation that stores the last R + 1 rows whole."""
    options, chunks = GENERATIONS[setting]
    method = replace(PvC(solve=False, prefill_decay_ratio=0.5, min_context_length=6), **options)
    host, ids, fed = engine(family), prompt(50, 2, seed=31), prompt(sum(chunks), 2, seed=32)
    groups = fork(host, ids, [Cell("x", method, None, hold=True)], sum(chunks))
    start = [[heads[0] for heads in kept_sets(groups[0], layer)] for layer in range(4)]
    heads = groups[0].prefill.layers[0].keys.shape[1]
    rules = generation_rules(method, start, 4, 50, heads, 2)
    layers = groups[0].prefill.layers

    def alive(layer):
        return torch.zeros(2, 50, dtype=torch.bool).scatter_(1, layers[layer].positions, True)

    kept, logits = naive.decode(dense(family), ids, fed, chunks, rules, alive)
    trace = teach(host, groups, fed, chunks)
    for number, (expected, (_, _, step)) in enumerate(zip(kept, trace.kept[0], strict=True)):
        for layer in range(4):
            assert kept_sets(None, layer, step) == expected[layer], (number, layer)
    torch.testing.assert_close(torch.stack(trace.logits, 1), logits, **CLOSE)
    assert min(rule.blocks for layer in rules for rule in layer) >= 1  # compression did fire everywhere


def test_the_prompt_and_its_sinks_survive_64_steps():
    """The official code loses a deep layer's whole prompt; here every prompt entry stays, in every layer."""
    for name in ("pvc", "pvc_kv", "pvc_constant"):
        method = replace(configured()[name], solve=False, prefill_decay_ratio=0.5, min_context_length=6)
        groups = fork(engine("llama_deep"), prompt(60, 2), [Cell("x", method, None, hold=True)], 64)
        before = [kept_sets(groups[0], layer) for layer in range(7)]
        teach(engine("llama_deep"), groups, prompt(64, 2, seed=1), [1] * 64)
        for layer, start in enumerate(before):
            for now, then in zip(kept_sets(groups[0], layer), start, strict=True):
                for mine, known in zip(now, then, strict=True):
                    assert known == {position for position in mine if position < 60}
                    assert {0, 1, 2, 3} <= known
        sizes = [entries.filled for entries in groups[0].layers]
        grown = [size - len(start[0][0]) for size, start in zip(sizes, before, strict=True)]
        assert all(deep <= shallow for shallow, deep in pairwise(grown))
        assert grown[-1] < grown[0] < 64  # every layer has compressed, deep ones more


@pytest.mark.parametrize("interval", [2, 3])
def test_an_interval_above_1_decodes(interval):
    """The official code crashes at the first decode step there."""
    method = PvC(solve=False, layerwise_downsample_interval=interval, min_context_length=6)
    groups = fork(engine("llama_deep"), prompt(60), [Cell("x", method, None, hold=True)], 40)
    assert groups[0].layers[-1].filled < 60
    trace = teach(engine("llama_deep"), groups, prompt(40, seed=1), [1] * 40)
    assert torch.isfinite(torch.stack(trace.logits)).all()


def test_state_is_a_few_numbers_per_entry():
    """No store of attention rows: two running sums per entry, counted in the state's bytes."""
    method = PvC(solve=False, prefill_decay_ratio=0.5, min_context_length=6)
    group = fork(engine("llama_deep"), prompt(60), [Cell("x", method, None, hold=True)], 1)[0]
    sizes = group.measure(0, 0)
    assert sizes.state_bytes == round(sum(sizes.entries)) * 2 * 8  # one KV head, two float64 numbers
    assert group.layers[0].totals.numel() == 61 * 2


def test_scores_of_kv_are_the_weighted_recent_attention():
    """The scores themselves, not just the sets: the mean over heads of the last R + 1 rows by their weights."""
    method, ids = PvC(solve=False, prune="kv", min_context_length=6), prompt(60, 2)
    prefill = engine("llama").prefill(ids, [method])
    weights = torch.linspace(1, 1.2, 13, dtype=torch.float64)
    for scores, attention in zip(prefill.observer.scores[method], attention_of("llama", ids), strict=True):
        expected = (weights[:, None] * attention[:, :, -13:]).sum(2).mean(1, keepdim=True).expand(-1, 2, -1)
        torch.testing.assert_close(scores, expected, **CLOSE)
