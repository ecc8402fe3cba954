"""Eviction at intervals: two hundred steps beside dense attention, in memory of one size, and sizes over time."""

from functools import cache

import pytest
import torch

from pvcbench.engine.decode import Decoder
from pvcbench.engine.engine import Engine
from pvcbench.engine.evict import Cell
from pvcbench.engine.query_rows import Ring
from pvcbench.engine.static_decode import StaticDecoder, fastest
from pvcbench.errors import UserError
from tiny import METHODS, build, dense, dense_masks, distinct, engine, exact_rotary, prompt, ranks_of, teach
from uneven_plans import Pyramid, Ragged

pytestmark = pytest.mark.usefixtures("inference")
TOKENS, STEPS, BUDGET, INTERVAL = 40, 200, 20, 7
DRAWS = torch.tensor([5, 70])
NAMES = ["h2o", "streaming_llm", "tova", "keydiff", "lagkv_decoding", "random", "rkv", "vase"]  # others are their kin
CASES = {(name, False): METHODS[name] for name in NAMES} | {(name, True): METHODS[name] for name in ("h2o", "vase")}
CASES |= {("ragged", True): Ragged(), ("pyramid", False): Pyramid()}


def forked(host, ids, method, interval=INTERVAL, stays=False, room=STEPS, fed=1, draws=DRAWS):
    """The group of a cell that holds at an interval."""
    settled = method.resolve(BUDGET, host.shape(ids.shape[1]))
    prefill = host.prefill(ids, [settled], draws=draws[: len(ids)])
    cell = Cell("x", settled, BUDGET, True, interval=interval, stays=stays)
    return host.fork(prefill, [cell], room, fed=fed)[0]


@cache
def decoded(exact):
    """Every case stepping together, or those at cache positions: (group, logits, kept positions), and all tokens."""
    host, cases = engine("llama"), {key: one for key, one in CASES.items() if (one.positions == "cache") == exact}
    if exact:  # rotations of a sink add up: float64 tables, or float32's error is all that is seen
        host = Engine(build("llama"))
        host.model.model.rotary_emb.forward = exact_rotary(host.model)
    ids, fed = prompt(TOKENS, 2, seed=3), prompt(STEPS, 2, seed=4)
    settled = {key: method.resolve(BUDGET, host.shape(TOKENS)) for key, method in cases.items()}
    prefill = host.prefill(ids, list(settled.values()), draws=DRAWS)
    cells = [Cell("x", one, BUDGET, True, interval=INTERVAL, stays=stays) for (_, stays), one in settled.items()]
    groups = host.fork(prefill, cells, STEPS, fed=1)
    places = [entries.keys.data_ptr() for group in groups for entries in group.layers]
    trace = teach(host, groups, fed.repeat(len(groups), 1), [1] * STEPS)
    assert places == [entries.keys.data_ptr() for group in groups for entries in group.layers]
    logits = torch.stack(trace.logits, 1).split(2)
    return dict(zip(cases, zip(groups, logits, trace.kept, strict=True), strict=True)), torch.cat((ids, fed), 1)


@pytest.mark.parametrize("name, stays", CASES)
@pytest.mark.sampled(4)
def test_two_hundred_steps(name, stays):
    """Logits are dense attention's under the mask of what was kept; sizes rise by the interval and fall to the budget.

    Slots are those of budget and interval from the first step to the last; what is protected is there throughout.
    """
    method = CASES[name, stays]
    exact = method.positions == "cache"
    found, both = decoded(exact)
    group, logits, kept = found[name, stays]
    masks = dense_masks(kept, group.prefill, TOKENS + STEPS)
    expected = dense("llama", exact)(both, masks, ranks=ranks_of(masks, TOKENS + STEPS) if exact else None)
    torch.testing.assert_close(logits, expected[:, TOKENS:], rtol=1e-9, atol=1e-9)
    first, last = (0, 0) if stays or name == "ragged" else method.protects(BUDGET, group.prefill.shape)
    for layer, entries in enumerate(group.layers):
        begun, free = kept[0][2][layer], entries.target - entries.start  # nothing goes before so many steps
        before = (begun >= 0).sum(-1)
        assert entries.keys.shape[2] == entries.target + INTERVAL
        for number, (seen, _, step) in enumerate(kept):
            there = before + (number if number < free else free + (number - free) % INTERVAL)
            assert torch.equal((step[layer] >= 0).sum(-1), there)
            for sample, heads in enumerate(step[layer].tolist()):
                for head, own in enumerate(map(set, heads)):
                    must = set(begun[sample, head].tolist()) if stays else {*range(first), *range(seen - last, seen)}
                    assert must - {-1} <= own and len(own - {-1}) == there[sample, head]


def test_an_interval_of_one_is_what_hold_was():
    """The same logits to the last bit with slots for one entry more as with slots for all."""
    host, ids, fed = engine("llama"), prompt(TOKENS, 2, seed=3), prompt(30, 2, seed=4)
    for name in ("h2o", "rkv"):
        few, many = (forked(host, ids, METHODS[name], 1, room=30, fed=fed_at_once) for fed_at_once in (1, None))
        assert [one.layers[0].keys.shape[2] for one in (few, many)] == [BUDGET + 1, BUDGET + 30]
        traces = [teach(host, [group], fed, [1] * 30) for group in (few, many)]
        assert all(map(torch.equal, traces[0].logits, traces[1].logits))
        assert {len(head) for _, _, step in traces[0].kept[0] for head in step[0][0]} == {BUDGET}


@pytest.mark.parametrize("name", ["h2o", "vase"])
def test_a_batch_is_its_samples(name):
    """Two samples together, and beside a cell of another interval, keep what each keeps alone."""
    host, tokens = engine("qwen2"), distinct(TOKENS + 20, 2)
    ids, fed = tokens[:, :TOKENS], tokens[:, TOKENS:]
    pair = [forked(host, ids, METHODS[name], interval, room=20) for interval in (3, 8)]
    together = teach(host, pair, fed.repeat(2, 1), [1] * 20).kept
    for own, interval in zip(together, (3, 8), strict=True):
        for row in range(2):
            part = slice(row, row + 1)
            alone = forked(host, ids[part], METHODS[name], interval, room=20, draws=DRAWS[part])
            for (_, _, mine), (_, _, one) in zip(own, teach(host, [alone], fed[part], [1] * 20).kept[0], strict=True):
                for layer, other in zip(mine, one, strict=True):
                    assert torch.equal(layer[part].sort(-1).values, other.sort(-1).values)


def test_a_question_is_one_step():
    """Its tokens see all that was kept before, then the cell drops to its budget at once, if they are enough."""
    host, ids, fed = engine("llama"), prompt(TOKENS, 2, seed=3), prompt(16, 2, seed=4)
    group = forked(host, ids, METHODS["rkv"], 6, room=16, fed=9)
    sizes = [len(step[0][0][0]) for _, _, step in teach(host, [group], fed, [9, 5, 1, 1]).kept[0]]
    assert sizes == [BUDGET, BUDGET, BUDGET + 5, BUDGET] and group.layers[0].keys.shape[2] == BUDGET + 5 + 9


def test_sizes_over_time():
    """Mean and peak over the steps of a row's own answer, for a cell that holds and one that grows, by hand."""
    host, ids = engine("gemma3"), prompt(TOKENS, 2, seed=3)
    held = forked(host, ids, METHODS["h2o"], 5, room=12)
    grown = host.fork(held.prefill, [Cell("x", METHODS["h2o"], BUDGET)], 12)[0]
    decoder = Decoder(host.call, [held, grown])
    for _ in range(12):
        decoder.step(torch.full((4, 1), 7))
    held.ended[1] = 3
    slot, full = 2 * 8 * 2 * 8, [layer not in held.prefill.shape.evicted for layer in range(6)]
    steps = {True: [BUDGET + 1 + step % 5 for step in range(12)], False: [BUDGET + 1 + step for step in range(12)]}
    for group, holds in ((held, True), (grown, False)):
        for row, count in ((0, 12), (1, 3 if holds else 12)):
            entries = steps[holds][:count]
            sliding = [group.layers[full.index(True)].start + 1 + step for step in range(count)]
            size = [slot * (3 * one + 3 * other) for one, other in zip(entries, sliding, strict=True)]
            found = group.over_time(0, row)
            assert found.entries == pytest.approx(sum(entries) / count) and found.entries_peak == max(entries)
            assert found.kv_bytes == pytest.approx(sum(size) / count) and found.kv_bytes_peak == max(size)
    assert host.fork(held.prefill, [Cell("x", METHODS["h2o"], BUDGET)], 1)[0].over_time(0, 0) is None


def test_answers_of_a_batch_end_by_themselves():
    """A row's sizes are those up to its own last token, though its group goes on for the other."""
    host, ids = engine("llama"), prompt(TOKENS, 2, seed=3)
    free, _ = host.greedy([forked(host, ids, METHODS["h2o"])], feed=None, new_tokens=9, ends=())
    place = next(n for n in range(1, 9) if free[0][0][n] not in (*free[0][0][:n], *free[0][1]))
    group = forked(host, ids, METHODS["h2o"])
    host.greedy([group], feed=None, new_tokens=9, ends=[free[0][0][place]])
    assert group.ended == {0: place, 1: 8} and len(group.grown) == 8


def test_a_ring_keeps_the_newest_rows():
    """In order, whether they come one by one or more than it holds; before it is full, those that there are."""
    rows = torch.arange(40.0).view(1, 1, 20, 2)
    for sizes in ([1] * 17, [5, 9, 3], [2, 15], []):
        ring, count = Ring.of(rows[:, :, :3], 4), 3
        assert torch.equal(ring.newest(), rows[:, :, :3])
        for size in sizes:
            ring.add(rows[:, :, count : count + size])
            count += size
            assert torch.equal(ring.newest(), rows[:, :, max(0, count - 4) : count])


def test_what_has_no_interval_says_so():
    """Steps of one shape fall back to ordinary ones; reading a document evicts by its own protocol."""
    host, ids = engine("llama"), prompt(TOKENS, 2, seed=3)
    for group in (forked(host, ids, METHODS["h2o"]), forked(host, ids, METHODS["h2o"], 1, stays=True)):
        with pytest.raises(ValueError, match="interval=1, prompt=counted"):
            StaticDecoder(host.call, [group])
        assert type(fastest(host.call, [group])) is Decoder
        with pytest.raises(UserError, match="its own protocol: leave interval=1"):
            host.stream(ids, group.cells[0])
    with pytest.raises(ValueError, match="does not evict one entry in every step"):
        StaticDecoder(host.call, [forked(host, ids, METHODS["rkv"], 1)])
