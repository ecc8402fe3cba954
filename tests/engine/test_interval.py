"""Eviction at intervals: two hundred steps beside dense attention, in memory of one size, and sizes over time."""

import pytest
import torch

from pvcbench.engine.decode import Decoder
from pvcbench.engine.engine import Engine
from pvcbench.engine.evict import Cell
from pvcbench.engine.query_rows import Ring
from pvcbench.engine.static_decode import StaticDecoder, fastest
from pvcbench.errors import UserError
from tiny import METHODS, build, dense, dense_masks, distinct, engine, exact_rotary, positions, prompt, ranks_of, teach
from uneven_plans import Pyramid, Ragged

pytestmark = pytest.mark.usefixtures("inference")
TOKENS, STEPS, BUDGET, INTERVAL = 40, 200, 20, 7
DRAWS = torch.tensor([5, 70])
NAMES = ["h2o", "streaming_llm", "streaming_llm_original_positions", "tova", "keydiff", "lagkv_decoding", "random"]
NAMES += ["random_redrawn", "rkv", "snapkv_d", "vase"]
CASES = [(METHODS[name], False) for name in NAMES] + [(METHODS[name], True) for name in ("h2o", "rkv", "vase")]
CASES += [(Ragged(), False), (Ragged(), True), (Pyramid(), True)]


def forked(host, ids, method, interval=INTERVAL, stays=False, room=STEPS, fed=1, draws=DRAWS):
    """The group of a cell that holds at an interval."""
    settled = method.resolve(BUDGET, host.shape(ids.shape[1]))
    prefill = host.prefill(ids, [settled], draws=draws[: len(ids)])
    cell = Cell("x", settled, BUDGET, True, interval=interval, stays=stays)
    return host.fork(prefill, [cell], room, fed=fed)[0]


@pytest.mark.parametrize("method, stays", CASES, ids=lambda one: type(one).__name__ if one not in (0, 1) else str(one))
def test_two_hundred_steps(method, stays):
    """Logits are dense attention's under the mask of what was kept; sizes rise by the interval and fall to the budget.

    Slots are those of budget and interval from the first step to the last; what is protected is there throughout.
    """
    host, exact = engine("llama"), method.positions == "cache"
    if exact:  # rotations of a sink add up: float64 tables, or float32's error is all that is seen
        host = Engine(build("llama"))
        host.model.model.rotary_emb.forward = exact_rotary(host.model)
    ids, fed = prompt(TOKENS, 2, seed=3), prompt(STEPS, 2, seed=4)
    group = forked(host, ids, method, stays=stays)
    places = [(entries.keys.data_ptr(), entries.keys.shape) for entries in group.layers]
    first_kept = positions(group)
    trace = teach(host, [group], fed, [1] * STEPS)
    assert places == [(entries.keys.data_ptr(), entries.keys.shape) for entries in group.layers]
    both = torch.cat((ids, fed), 1)
    masks = dense_masks(trace.kept[0], group.prefill, TOKENS + STEPS)
    expected = dense("llama", exact)(both, masks, ranks=ranks_of(masks, TOKENS + STEPS) if exact else None)
    torch.testing.assert_close(torch.stack(trace.logits, 1), expected[:, TOKENS:], rtol=1e-9, atol=1e-9)
    first, last = method.protects(BUDGET, group.prefill.shape)
    for layer, entries in enumerate(group.layers):
        before = (first_kept[layer] >= 0).sum(-1)
        for number, (seen, _, step) in enumerate(trace.kept[0]):
            there = (step[layer] >= 0).sum(-1)
            since = number if number < entries.target - entries.start else None  # nothing goes before that
            rise = number - (entries.target - entries.start)
            assert torch.equal(there, before + (since if since is not None else number - rise + rise % INTERVAL))
            must = {*range(first), *range(seen - last, seen)} if not isinstance(method, Ragged) else set()
            for sample, heads in enumerate(step[layer].tolist()):
                for head, own in enumerate(heads):
                    stay = set(first_kept[layer][sample, head].tolist()) - {-1} if stays else set()
                    assert (must if not stays else stay) <= set(own) and len(set(own) - {-1}) == there[sample, head]
        assert entries.keys.shape[2] == entries.target + INTERVAL


def test_an_interval_of_one_is_what_hold_was():
    """The same logits to the last bit with slots for one entry more as with slots for all."""
    host, ids, fed = engine("llama"), prompt(TOKENS, 2, seed=3), prompt(30, 2, seed=4)
    for name in ("h2o", "rkv"):
        few, many = (forked(host, ids, METHODS[name], 1, room=30, fed=fed_at_once) for fed_at_once in (1, None))
        assert [one.layers[0].keys.shape[2] for one in (few, many)] == [BUDGET + 1, BUDGET + 30]
        traces = [teach(host, [group], fed, [1] * 30) for group in (few, many)]
        assert all(map(torch.equal, traces[0].logits, traces[1].logits))
        assert {len(head) for _, _, step in traces[0].kept[0] for head in step[0][0]} == {BUDGET}


@pytest.mark.parametrize("name", ["h2o", "rkv", "vase", "lagkv_decoding"])
def test_a_batch_is_its_samples(name):
    """Two samples together, and beside a cell of another interval, keep what each keeps alone."""
    host, tokens = engine("qwen2"), distinct(TOKENS + 25, 2)
    ids, fed = tokens[:, :TOKENS], tokens[:, TOKENS:]
    pair = [forked(host, ids, METHODS[name], interval, room=25) for interval in (3, 8)]
    together = teach(host, pair, fed.repeat(2, 1), [1] * 25).kept
    for own, interval in zip(together, (3, 8), strict=True):
        for row in range(2):
            part = slice(row, row + 1)
            alone = forked(host, ids[part], METHODS[name], interval, room=25, draws=DRAWS[part])
            for (_, _, mine), (_, _, one) in zip(own, teach(host, [alone], fed[part], [1] * 25).kept[0], strict=True):
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
