"""Layers that read another's entries, and layers with numbers of KV heads of their own, under every method.

The dense reference is the one of family_dense.py: plain softmax under any mask, float64, no rounding between. A
reader stands there under the mask of its source. On prompts of 22 tokens the sliding layers evict beside the full ones;
they then have other numbers of heads than these in MIXED.
"""

from functools import cache
from itertools import accumulate

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import families
from family_dense import CLOSE, Dense, off
from methods.ada_kv import AdaKV
from methods.h2o import H2O
from methods.pvc import PvC
from methods.pyramidkv import PyramidKV
from methods.random import Random
from methods.snapkv import SnapKV
from methods.streaming_llm import StreamingLLM
from methods.tova import TOVA
from pvcbench.architectures.families import type_of, widen
from pvcbench.engine.engine import Engine
from pvcbench.engine.evict import Cell
from pvcbench.engine.refusal import refusal
from pvcbench.engine.static_decode import StaticDecoder
from pvcbench.errors import MethodError, UserError
from pvcbench.policy import Method, OutOfReach, Shape, by_layer
from tiny import WRITER, cell_of, configured, fork, original, positions, shrunk, teach, turn

FEWER = {"num_global_key_value_heads": 1, "attention_k_eq_v": True}  # in the layers that do not slide
VARIANTS = {  # a family and what its tiny model has beyond the recipe
    "gemma3n": ("gemma3n_text", {}),
    "gemma4_mixed": ("gemma4_text", FEWER),
    "gemma4_unshared": ("gemma4_text", {"num_kv_shared_layers": 0}),
    "gemma4_moe": ("gemma4_text:moe", {}),
    "mimo": ("mimo_v2_flash", {}),
}
SHARED, MIXED = ["gemma3n", "gemma4_mixed"], ["gemma4_mixed", "gemma4_moe", "mimo"]
METHODS = {name: shrunk(method) for name, method in configured().items() if not method.unnamed}
SHORT, LONG, STEPS, CHUNK = 22, 40, 6, 7
DRAWS = torch.tensor([11, 2**40 + 3])
FULL = Cell("1.0", Method(), None, everything=True)
pytestmark = pytest.mark.usefixtures("inference")
every = pytest.mark.parametrize("name", VARIANTS)
shared = pytest.mark.parametrize("name", SHARED)
both = pytest.mark.parametrize("hold", [False, True], ids=["grow", "hold"])


@pytest.fixture(autouse=True)
def exact():
    """Transformers' code of every family here must be imported before its roundings can be taken out."""
    for name in VARIANTS:
        plain(name), reference(name)
    with families.unrounded():
        yield
    for name in VARIANTS:
        host(name).chunk = None


def build(name: str):
    """The tiny model of a variant in float64."""
    family, more = VARIANTS[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(type_of(family), **families.settings(family) | more)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    model.set_experts_implementation("eager")  # the grouped matrix product has no float64
    widen(model)
    return model


@cache
def plain(name: str):
    """The model as transformers runs it."""
    return build(name)


@cache
def host(name: str) -> Engine:
    """The engine on a model of its own."""
    return Engine(build(name), writer=WRITER)


class Reference(Dense):
    """The dense reference of a variant."""

    def __init__(self, name: str):
        self.model, self.engine = build(name), host(name)
        self.model.set_attn_implementation("tests_families")
        layout = self.engine.layout
        self.order = [number for _, number in sorted({**layout.numbers, **layout.readers}.items())]


@cache
def reference(name: str) -> Reference:
    return Reference(name)


def cells_of(name: str, tokens: int, hold: bool = False) -> list[Cell]:
    """A cell of every method that runs on the variant, each at a budget that it reaches, at original positions."""
    pruned = not host(name).layout.readers
    shape = host(name).shape(tokens)
    methods = [original(method) for method in METHODS.values() if pruned or not method.prunes]
    return [cell_of(method, shape, hold, (0.35, 0.5, 0.7, 0.85, 0.9, 1.0)) for method in dict.fromkeys(methods)]


def masks_of(group, kept, tokens, total):
    """What each row of a group sees in each layer: of the prompt what reached the layer, then what is kept."""
    rows, masks = len(group.layers[0].keys), []
    for layer, entries in enumerate(group.layers):
        stored = group.prefill.layers[layer].positions.repeat(len(group.cells), 1)
        alive = torch.zeros(rows, total, dtype=torch.bool).scatter_(1, stored, True)
        mask = torch.zeros(rows, entries.keys.shape[1], total, total, dtype=torch.bool)
        mask[:, :, :tokens] = alive[:, None, None]
        for first, size, layers in kept:
            seen = torch.zeros(*mask.shape[:2], total + 1, dtype=torch.bool)
            seen.scatter_(2, layers[layer].masked_fill(layers[layer] < 0, total), True)  # the last: empty slots
            seen[:, :, first : first + size] = True
            mask[:, :, first : first + size] = seen[:, :, None, :total]
        masks.append(mask)
    return masks


def compare(name, ids, tokens, groups, trace, sizes) -> None:
    """Holds a decoding of several groups against the dense reference under their masks."""
    ends = [tokens - 1 + end for end in accumulate(sizes)]
    logits, start = torch.stack(trace.logits, 1), 0
    for group, kept in zip(groups, trace.kept, strict=True):
        rows = len(group.layers[0].keys)
        expected = reference(name)(ids.repeat(rows // len(ids), 1), masks_of(group, kept, tokens, ids.shape[1]))
        found, start = logits[start : start + rows], start + rows
        assert off(found, expected[:, ends]) < CLOSE, [cell.method for cell in group.cells]


# ---------------------------------------------------------------------------------------------- every method


@every
@pytest.mark.sampled(2)
def test_at_full_budget_every_method_computes_what_the_model_does(name):
    """Property 1: the prompt in chunks, then one token, three at once, and two."""
    ids, engine, sizes = families.prompt(LONG + STEPS, 2), host(name), [1, 3, 2]
    cells = [FULL]
    for method in METHODS.values():
        if method.own_budget is None and not (method.prunes and engine.layout.readers):
            cells.append(Cell("full", original(method).resolve(LONG, engine.shape(LONG)), LONG))
    engine.chunk = CHUNK
    groups = fork(engine, ids[:, :LONG], cells, STEPS, DRAWS)
    found = torch.stack(teach(engine, groups, ids[:, LONG:].repeat(len(cells), 1), sizes).logits, 1)
    ends = [LONG - 1 + end for end in accumulate(sizes)]
    expected = plain(name)(input_ids=ids, use_cache=False).logits[:, ends].repeat(len(cells), 1, 1)
    assert len(cells) > 15 and off(found, expected) < CLOSE


@both
@every
@pytest.mark.parametrize("tokens", [SHORT, LONG])
@pytest.mark.sampled(4)
def test_at_any_budget_every_method_computes_dense_attention_under_its_mask(name, tokens, hold):
    """Property 2, all methods in one batch; under hold the mask changes with every token."""
    ids, engine, sizes = families.prompt(tokens + STEPS, 2, seed=1), host(name), [1] * STEPS if hold else [1, 3, 2]
    cells = cells_of(name, tokens, hold)
    groups = fork(engine, ids[:, :tokens], cells, STEPS, DRAWS)
    for group in groups:  # what keeps all has nothing to show
        sizes_then, [cell, *_] = group.measure(0, 0).entries, group.cells
        cut = any(sizes_then[layer] < tokens for layer in group.prefill.shape.evicted)
        assert cut or cell.budget is None or cell.budget == tokens or cell.pruner is not None
    rows = sum(len(group.layers[0].keys) for group in groups)
    trace = teach(engine, groups, ids[:, tokens:].repeat(rows // 2, 1), sizes)
    compare(name, ids, tokens, groups, trace, sizes)


def by_cell(name, prefill, cells, fed, sizes) -> dict[Cell, torch.Tensor]:
    """The logits of each cell, [samples, steps, vocabulary], all of them forked and decoded together."""
    engine, batch = host(name), len(prefill.logits)
    groups = engine.fork(prefill, cells, STEPS)
    logits = torch.stack(teach(engine, groups, fed[:batch].repeat(len(cells), 1), sizes).logits, 1)
    order = [cell for group in groups for cell in group.cells]
    return dict(zip(order, logits.split(batch), strict=True))


@every
@pytest.mark.sampled(1)
def test_batches_chunks_and_forks_change_nothing(name):
    """Property 5: the logits of every method from a prompt in chunks, from a second fork, and of one sample alone."""
    ids, engine = families.prompt(LONG + STEPS, 2, seed=2), host(name)
    cells = [cell for cell in cells_of(name, LONG) if cell.pruner is None]
    parts = name, [cell.method for cell in cells if not cell.everything], ids[:, LONG:], [1, 3, 2]
    whole = engine.prefill(ids[:, :LONG], parts[1], draws=DRAWS)
    engine.chunk = CHUNK
    chunked = engine.prefill(ids[:, :LONG], parts[1], draws=DRAWS)
    engine.chunk = None
    single = engine.prefill(ids[:1, :LONG], parts[1], draws=DRAWS[:1])
    first, again, other, one = (
        by_cell(name, prefill, cells, *parts[2:]) for prefill in (whole, whole, chunked, single)
    )
    for cell in cells:
        assert torch.equal(first[cell], again[cell]), cell.method
        assert off(other[cell], first[cell]) < CLOSE, cell.method
        assert off(one[cell], first[cell][:1]) < CLOSE, cell.method
    for cell in cells[::6]:  # the other cells of a batch do not matter either
        assert off(by_cell(name, whole, [cell], *parts[2:])[cell], first[cell]) < CLOSE, cell.method


# ---------------------------------------------------------------------------------------------- readers


@shared
def test_readers_hold_nothing(name):
    """The cache of the unmodified model has the same bytes, and as many layers with entries."""
    engine, ids = host(name), families.prompt(SHORT, 2)
    held = [
        layer
        for layer in plain(name)(input_ids=ids, use_cache=True).past_key_values.layers
        if getattr(layer, "keys", None) is not None
    ]
    group = engine.fork(engine.prefill(ids), [FULL], 0)[0]
    assert len(engine.layout.readers) == 2 and len(held) == len(group.layers) == 4
    assert group.measure(0, 0).kv_bytes == sum(layer.keys.nbytes + layer.values.nbytes for layer in held) // 2


@shared
@pytest.mark.parametrize("method", [H2O(), TOVA(), Random()], ids=["h2o", "tova", "random"])
def test_steps_of_one_shape(name, method):
    """Static decoding beside ordinary decoding, where cells grow and where they hold."""
    ids, engine = families.prompt(LONG + STEPS, 2, seed=5), host(name)
    prefill = engine.prefill(ids[:, :LONG], [method], draws=DRAWS)
    for cells in ([FULL, Cell("16", method, 16)], [Cell("hold", method, 16, hold=True)]):
        fed = ids[:, LONG:].repeat(len(cells), 1)
        expected = teach(engine, engine.fork(prefill, cells, STEPS + 1), fed, [1] * STEPS)
        static = StaticDecoder(engine.call, engine.fork(prefill, cells, STEPS + 1))
        static._trial()
        found = [static.step(fed[:, number : number + 1]) for number in range(STEPS)]
        assert off(torch.stack(found), torch.stack(expected.logits)) < CLOSE
        static.finish()
        assert all(not waiting for waiting in static.cache.waiting.values())


@shared
@pytest.mark.parametrize("method", [H2O(), Random()], ids=["h2o", "random"])
@pytest.mark.parametrize("each", [1, 3])
@pytest.mark.sampled(3)
def test_a_stream_is_decoding_under_hold(name, method, each):
    """Streams go token by token here: the same logits as a fork that holds, which dense attention is beside above."""
    ids, engine, budget = families.prompt(LONG, 2, seed=6), host(name), 16
    found, _ = engine.stream(ids, Cell("hold", method, budget), each, DRAWS)
    whole = engine.shape(LONG)
    begun = Shape(budget, whole.layers, whole.evicted)  # the layers that evict are those of the whole document
    prefill = engine.prefill(ids[:, :budget], [method], draws=DRAWS, shape=begun)
    group = engine.fork(prefill, [Cell("hold", method, budget, hold=True)], LONG)
    rest = LONG - budget
    sizes = [each] * (rest // each) + ([rest % each] if rest % each else [])
    trace = teach(engine, group, ids[:, budget:], sizes)
    logits = torch.stack(trace.logits, 1)[:, :-1]
    ends = [budget - 1 + end for end in accumulate(sizes)][:-1]
    wanted = ids[:, [end + 1 for end in ends]]
    expected = logits.log_softmax(-1).gather(-1, wanted[..., None])[..., 0]
    torch.testing.assert_close(found.logprobs[:, ends], expected, rtol=0, atol=1e-11)


@both
@shared
def test_cache_positions_hold_for_readers(name, hold, monkeypatch):
    """First tokens stand where they do in the cache for every layer that reads them: dense attention, turned keys."""
    ids, engine, sinks, budget = families.prompt(LONG + STEPS, 2, seed=7), host(name), 3, 14
    cell = Cell("cache", StreamingLLM(sinks=sinks), budget, hold)
    groups = engine.fork(engine.prefill(ids[:, :LONG], [cell.method]), [cell], STEPS)
    trace = teach(engine, groups, ids[:, LONG:], [1] * STEPS)
    layout, dense = engine.layout, reference(name)
    kinds = {layout.numbers[place]: dense.model.config.layer_types[place] for place in layout.numbers}
    shifts = torch.zeros(LONG + STEPS, dtype=torch.int64)
    shifts[LONG:] = torch.arange(LONG, LONG + STEPS) - budget if hold else LONG - budget

    def attend(query, key, value, scale, cap, sinks_):
        layer = dense.order[dense.calls]
        if layer not in groups[0].prefill.shape.evicted:
            return Dense.attend(dense, query, key, value, scale, cap, sinks_)
        dense.calls += 1
        cos, sin = dense.model.get_decoder().rotary_emb(query, shifts[None], kinds[layer])
        groups_, tokens = query.shape[1] // key.shape[1], key.shape[2]
        first = key[:, :, None, :sinks].expand(-1, -1, tokens, -1, -1)
        first = turn(first, cos[0][None, None, :, None], sin[0][None, None, :, None]).repeat_interleave(groups_, 1)
        logits = query @ key.repeat_interleave(groups_, 1).mT
        logits[..., :sinks] = torch.einsum("bhqd,bhqsd->bhqs", query, first)
        allowed = dense.allowed(layer, tokens, engine.windows[layer]).repeat_interleave(groups_, 1)
        return (logits * scale).masked_fill(~allowed, float("-inf")).softmax(-1) @ value.repeat_interleave(groups_, 1)

    monkeypatch.setattr(dense, "attend", attend, raising=False)
    expected = dense(ids, masks_of(groups[0], trace.kept[0], LONG, LONG + STEPS))
    assert off(torch.stack(trace.logits, 1), expected[:, LONG:]) < CLOSE


@shared
def test_what_cannot_follow_is_refused_in_words(name):
    engine, ids = host(name), families.prompt(LONG)
    with pytest.raises(UserError, match="PvC drops tokens between layers, and layers that read the entries of another"):
        engine.prefill(ids, pruner=PvC())
    with pytest.raises(UserError, match="layers read the entries of others cannot be read on from the middle"):
        engine.read(engine.prefill(ids), 20, ids[:, 20:24], ids[:, 21:25])


class Modes(type(AutoConfig.for_model("gemma4_text", **families.settings("gemma4_text")))):
    """A configuration whose layers share in ways that are said from outside."""

    modes = ()
    kv_sharing_modes = property(lambda self: list(self.modes))


@pytest.mark.parametrize("modes", [
    ["store", "store", None, None, "reuse", "half"],
    ["store", "store", "store", None, "reuse", "reuse"],
    [None, None, "store", None, "reuse", "reuse"],
], ids=["another word", "two sources of a kind", "no source"])  # fmt: skip
def test_sharing_of_another_kind_is_refused(modes):
    config = Modes(**families.settings("gemma4_text"))
    config.modes = [None, None, "store", "store", "reuse", "reuse"]
    assert refusal(config) is None
    config.modes = modes
    assert refusal(config) == (
        "some of its layers read the keys and values of others in a way that the engine does not know"
    )


# ---------------------------------------------------------------------------------------------- heads by layer


def test_the_variants_have_what_they_are_here_for():
    heads = {
        name: {layer.keys.shape[1] for layer in host(name).prefill(families.prompt(SHORT)).layers} for name in MIXED
    }
    assert heads == {"gemma4_mixed": {1, 2}, "gemma4_moe": {1, 2}, "mimo": {2, 4}}


@pytest.mark.parametrize("name", MIXED)
def test_sizes_where_layers_differ_in_heads(name):
    """Property 4: entries per KV head, mean over the layers that evict, whatever number of heads each has."""
    engine, ids, tried = host(name), families.prompt(SHORT, 2, seed=8), 0
    shape = engine.shape(SHORT)
    methods = [method for method in METHODS.values() if method.own_budget is None]
    methods = [method for method in methods if not (method.prunes and engine.layout.readers)]
    for budget in (13, 18):
        cells, solved = [], set()
        for method in dict.fromkeys(methods):
            try:
                cells.append(Cell("x", method.resolve(budget, shape), budget))
            except OutOfReach:
                continue
            solved |= {cells[-1]} if cells[-1].method != method else set()
        for group in fork(engine, ids, cells, 1, DRAWS):
            for number, cell in enumerate(group.cells):
                tried += 1
                for sample in range(2):
                    sizes = group.measure(number, sample).entries
                    assert len(sizes) == len(shape.evicted)  # all slide or fit: all evict
                    slack = 0.01 * SHORT if cell in solved else 0  # a solver comes that near
                    assert abs(sum(sizes) / len(sizes) - budget) <= slack, (cell, sizes)
    assert tried > 30


@pytest.mark.parametrize("base", [SnapKV(window=4), PyramidKV(window=4), PvC(prune="kv", min_context_length=8)])
def test_adakv_spreads_each_layers_own_heads(base):
    """The sum over a layer's heads is what its base plans for them, for one head and for two."""
    engine, method = host("gemma4_moe"), AdaKV(base)
    shape = engine.shape(SHORT)
    prefill = engine.prefill(families.prompt(SHORT, 2), [method], draws=DRAWS)
    scores = prefill.observer.scores[method]
    planned, found = by_layer(base.plan(scores, 14, shape), scores), method.plan(scores, 14, shape)
    assert [own.shape[1] for own in found] == [layer.shape[1] for layer in scores] == [2, 1, 2, 1]
    for own, counts in zip(found, planned, strict=True):
        assert torch.equal(own.sum(1), counts.sum(1))


class PerHead(Random):
    """A plan in one tensor for all layers."""

    more = 0

    def plan(self, scores, budget, shape):
        counts = torch.full((len(scores), *scores[0].shape[:2]), budget)
        counts[:, :, 0] += self.more
        return counts


def test_one_tensor_for_all_layers_stands_for_heads_that_are_kept_alike():
    """Where heads differ by layer, a plan in one tensor says nothing of the heads that its first layer lacks."""
    ids, engine = families.prompt(SHORT, 2), host("gemma4_moe")

    class Slanted(PerHead):
        more = -2

    prefill = engine.prefill(ids, [PerHead(), Slanted()], draws=DRAWS)
    assert engine.fork(prefill, [Cell("9", PerHead(), 9)], 0)[0].measure(0, 0).entries == [9.0] * 4
    with pytest.raises(
        MethodError, match=r"4 layers whole numbers, 0 or more, \[2, 2\] or \[2, 1\]: samples, KV heads"
    ):
        engine.fork(prefill, [Cell("9", Slanted(), 9)], 0)


def test_nothing_is_held_twice_where_heads_differ_by_layer():
    engine, ids = host("mimo"), families.prompt(SHORT, 2, seed=9)
    for group in fork(engine, ids, cells_of("mimo", SHORT), 0, DRAWS):
        for found in positions(group):
            for head in found.flatten(0, 1).tolist():
                there = [place for place in head if place >= 0]
                assert there == sorted(set(there))
