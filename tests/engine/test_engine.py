"""The engine against the unmodified model: at full budget token by token, at any budget under the equivalent mask."""

import signal
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
import torch

from beside_dense import DRAWS, followed, ranks_of
from pvcbench.engine import attention
from pvcbench.engine.engine import Engine
from pvcbench.engine.evict import Cell
from pvcbench.errors import UserError
from pvcbench.policy import Method
from tiny import (
    FAMILIES,
    METHODS,
    WINDOW,
    WRITER,
    build,
    cell_of,
    dense,
    dense_masks,
    distinct,
    engine,
    exact_rotary,
    fork,
    largest,
    original,
    positions,
    prompt,
    teach,
    unmodified,
)
from uneven_plans import Pyramid, Ragged

# float64 with norms in float64: logits of size 5 come out within 1e-13 of each other; 1e-9 is the design's promise
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
pytestmark = pytest.mark.usefixtures("inference")
FULL = METHODS["full"]
both = pytest.mark.parametrize("hold", [False, True], ids=["grow", "hold"])
every_method = pytest.mark.parametrize("name", METHODS)
every_family = pytest.mark.parametrize("family", FAMILIES)


def everything(method=FULL, hold=False):
    """A cell that never evicts."""
    return Cell("1.0", method, None, hold, everything=True)


def watchers(cell):
    """The methods that observe a cell's prefill."""
    return [] if cell.everything else [cell.method]


def ends(tokens, chunks):
    """The rows whose logits a chunked feeding returns: the last of each chunk."""
    return (torch.tensor(chunks).cumsum(0) + tokens - 1).tolist()


# ---------------------------------------------------------------------------------------------- full budget


FULL_BUDGETS = [(family, WINDOW + 36) for family in FAMILIES] + [
    (family, tokens) for family in ("gemma3", "mistral_sliding") for tokens in (WINDOW - 9, WINDOW, WINDOW + 1)
]


@pytest.mark.parametrize("family, tokens", FULL_BUDGETS)
def test_full_budget_equals_the_unmodified_model(family, tokens):
    """Greedy tokens and every step's logits by both decode policies, for prompts shorter and longer than the window."""
    host, ids = engine(family), prompt(tokens, 2)
    expected = unmodified(family).generate(ids, max_new_tokens=32, do_sample=False)
    cells = [everything(hold=False), everything(hold=True)]
    groups = fork(host, ids, cells, 32)
    assert host.greedy(groups, feed=None, new_tokens=32, ends=())[0] == [expected[:, tokens:].tolist()] * 2
    groups = fork(host, ids, cells, 32)
    trace = teach(host, groups, expected[:, tokens:].repeat(2, 1), [1] * 32)
    logits = unmodified(family)(expected).logits
    torch.testing.assert_close(groups[0].prefill.logits, logits[:, tokens - 1], **CLOSE)
    torch.testing.assert_close(torch.stack(trace.logits, 1), logits[:, tokens:].repeat(2, 1, 1), **CLOSE)


@every_method
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_every_method_at_full_budget_evicts_nothing(family, name):
    """A budget of 1.0 means the full cache, whatever the method, while decoding too."""
    host, ids, fed = engine(family), prompt(40), prompt(20, seed=1)
    cells = [everything(METHODS[name], hold) for hold in (False, True)]
    trace = teach(host, fork(host, ids, cells, 20), fed.repeat(2, 1), [1] * 20)
    expected = unmodified(family)(torch.cat((ids, fed), 1)).logits[:, 40:]
    torch.testing.assert_close(torch.stack(trace.logits, 1), expected.repeat(2, 1, 1), **CLOSE)


@every_family
def test_float32_as_loaded(family):
    """The same in float32 with the model's own norms: what a user runs."""
    model = build(family, torch.float32, exact=False)
    ids, fed = prompt(60), prompt(8, seed=1)
    expected = model(torch.cat((ids, fed), 1)).logits
    host = Engine(model, evict_sliding=True)
    trace = teach(host, fork(host, ids, [everything()], 8), fed, [1] * 8)
    # 4 layers of float32 sums in another order, logits of size 5: seen 1e-5
    torch.testing.assert_close(torch.stack(trace.logits, 1), expected[:, 60:], rtol=1e-3, atol=1e-3)


def test_release_gives_the_model_back():
    """After release the model runs on its own attention, without hooks."""
    model, ids = build("llama"), prompt(12)
    expected, before = model(ids).logits, model.config._attn_implementation
    host = Engine(model, writer=WRITER)
    for cell in cells_of(host.shape(12), False, (0.5, 0.9, 1.0)):
        fork(host, ids, [cell], 1)
    host.release()
    assert model.config._attn_implementation == before
    assert torch.equal(model(ids).logits, expected)


def test_a_model_that_slides_everywhere_is_refused():
    """Without evict_sliding nothing of such a model could be evicted: an error that says what to set."""
    host = Engine(build("mistral_sliding"))
    assert host.shape(WINDOW).evicted == (0, 1, 2, 3)  # every layer still sees the whole prompt
    with pytest.raises(UserError, match="evict_sliding"):
        host.prefill(prompt(WINDOW + 1))


def test_the_dense_reference_is_the_model():
    """What the tests below are held against equals the unmodified model where nothing is masked."""
    for family in FAMILIES:
        ids = prompt(60, 2)
        torch.testing.assert_close(dense(family)(ids), unmodified(family)(ids).logits, **CLOSE)


# ---------------------------------------------------------------------------------------------- any budget

# 70 tokens outgrow the window, 20 do so while decoding
MASKED = [(family, 70) for family in FAMILIES if family not in ("llama", "llama_yarn")]
MASKED += [(family, 20) for family in ("mistral_sliding", "gemma3")]


@every_method
@pytest.mark.parametrize("family, tokens", MASKED)
def test_any_budget_equals_dense_attention_under_the_mask(family, tokens, name):
    """The central test: what decoding computes is dense attention over what each layer and head has kept."""
    ids, fed = prompt(tokens, 2, seed=3), prompt(8, 2, seed=4)
    for cell, prefill, kept, logits, expected in followed(family, ids, fed, original(METHODS[name]), [1] * 8):
        torch.testing.assert_close(prefill.logits, expected[:, tokens - 1], **CLOSE)
        torch.testing.assert_close(logits, expected[:, tokens:], **CLOSE)
        if cell.budget is not None or (family == "llama_deep" and not cell.everything):  # or the above says nothing
            entries = sum((kept[0][layer] >= 0).double().sum(-1).mean() for layer in prefill.shape.evicted)
            assert entries < tokens * len(prefill.shape.evicted), "nothing was evicted"


@every_method
@pytest.mark.parametrize("family, tokens", [("llama", 64), ("gemma3", 40), ("mistral_sliding", 20)])
def test_a_question_fed_in_one_chunk(family, tokens, name):
    """The question goes through the compressed cache in one chunk, kept by grow, evicted after it by hold."""
    ids, fed, chunks = prompt(tokens, 2, seed=5), prompt(17, 2, seed=6), [9, 1, 1, 5, 1]
    for cell, prefill, kept, logits, expected in followed(family, ids, fed, original(METHODS[name]), chunks):
        torch.testing.assert_close(logits, expected[:, ends(tokens, chunks)], **CLOSE)
        for layer in range(prefill.shape.layers):
            sizes = [step[layer].shape[-1] for step in kept]
            if not cell.holds or layer not in prefill.shape.evicted:
                assert [size - sizes[0] for size in sizes] == [0, 9, 10, 11, 16]
            elif type(cell.method).drop is Method.drop:
                assert sizes == [cell.budget] * 5


@every_family
def test_a_question_at_full_budget(family):
    """Agnostic feeding without eviction equals the unmodified model on context and question together."""
    host, ids, question = engine(family), prompt(40, 2), prompt(9, 2, seed=1)
    expected = unmodified(family).generate(torch.cat((ids, question), 1), max_new_tokens=16, do_sample=False)
    groups = fork(host, ids, [everything(), everything(hold=True)], 9 + 16)
    tokens, _ = host.greedy(groups, feed=question, new_tokens=16, ends=())
    assert tokens == [expected[:, 49:].tolist()] * 2


@pytest.mark.parametrize("samples, hold", [(1, True), (3, False)])
def test_greedy_stops_each_row_for_itself(samples, hold):
    """Rows and cells that have met their end leave the others as they are alone."""
    host, ids = engine("llama"), prompt(50, samples)
    cells = [cell_of(original(method), host.shape(50), hold) for method in METHODS.values()]
    cells = list({(cell.method, cell.budget): cell for cell in cells}.values())
    options, alone = {"feed": None, "new_tokens": 12}, {}
    for cell in cells:
        (alone[cell],), _ = host.greedy(fork(host, ids, [cell], 12, DRAWS[:samples]), **options, ends=())
        assert {len(row) for row in alone[cell]} == {12}

    def upto(end, extra):
        return {c: [row[: row.index(end) + extra] if end in row else row for row in alone[c]] for c in cells}

    def together(**stop):
        groups = fork(host, ids, cells, 12, DRAWS[:samples])
        order = [cell for group in groups for cell in group.cells]
        return dict(zip(order, host.greedy(groups, **options, **stop)[0], strict=True))

    def ends_apart(end):
        return len({tuple(map(len, rows)) for rows in upto(end, 0).values()})

    end = max(sorted({token for rows in alone.values() for row in rows for token in row}), key=ends_apart)
    assert ends_apart(end) > 2  # some cells do end before others
    assert together(ends=(end,)) == upto(end, 0)
    assert together(ends=(), stopped=lambda row, tokens: tokens[-1] == end) == upto(end, 1)


# ---------------------------------------------------------------------------------------------- cache positions


at_cache_positions = pytest.mark.parametrize(
    "name", [n for n, method in METHODS.items() if method.positions == "cache"]
)


@at_cache_positions
@pytest.mark.parametrize("exact", [True, False], ids=["float64", "own"])
@pytest.mark.parametrize("family", ["llama", "llama_yarn", "phi3", "qwen3", "gemma3"])
@pytest.mark.sampled(10)
def test_cache_positions_equal_a_reference_before_rope(family, name, exact):
    """Keys taken before RoPE and rotated at their index in the cache, over 34 steps with a chunk among them."""
    tokens, chunks, host = 60, [1] * 20 + [7] + [1] * 14, engine(family)
    if exact:
        host = Engine(build(family))
        host.model.model.rotary_emb.forward = exact_rotary(host.model)
    ids, fed = prompt(tokens, 2, seed=7), prompt(sum(chunks), 2, seed=8)
    # float32 cos and sin are off by 6e-8; rotations of a sink multiply up to 1e-5 in the logits
    close = CLOSE if exact else {"rtol": 1e-4, "atol": 1e-4}
    for _, _, _, logits, expected in followed(family, ids, fed, METHODS[name], chunks, host, exact):
        torch.testing.assert_close(logits, expected[:, ends(tokens, chunks)], **close)


@at_cache_positions
def test_cache_positions_do_change_the_logits(name):
    """The two position modes differ, or the test above could not tell them apart."""
    host, ids, fed = engine("llama"), prompt(60, seed=7), prompt(3, seed=8)
    logits = []
    for method in (METHODS[name], original(METHODS[name])):
        groups = fork(host, ids, [cell_of(method, host.shape(60))], 3)
        logits.append(teach(host, groups, fed, [1] * 3).logits[-1])
    assert (logits[0] - logits[1]).abs().max() > 1e-3


def test_cache_positions_that_hold_refuse_scattered_entries():
    """Under hold they are defined for sinks and one recent window only: the gaps would move with every eviction."""

    @dataclass(frozen=True)
    class Scattered(Method):
        positions: str = "cache"

        def scores(self, seen):
            return -((seen.positions * 37) % 101).double()

    host, method = engine("llama"), Scattered()
    prefill = host.prefill(prompt(40), [method])
    with pytest.raises(ValueError, match="positions=original"):
        host.fork(prefill, [Cell("20", method, 20, hold=True)], 4)


# ---------------------------------------------------------------------------------------------- batches, chunks, forks


def cells_of(shape, hold, shares=(0.3, 0.5, 0.7, 0.85, 0.9)):
    """One cell of each method."""
    return [cell_of(method, shape, hold, shares) for method in METHODS.values()]


@both
@every_method
@pytest.mark.sampled(15)
def test_batched_equals_single(name, hold):
    """Three samples of equal length keep and compute what each does alone."""
    host, ids, fed = engine("llama"), prompt(60, 3, seed=9), prompt(10, 3, seed=10)
    cell = cell_of(METHODS[name], host.shape(60), hold)
    if cell.method.ragged_batch:
        pytest.skip("the rows of a batch may keep different numbers: samples run one by one")
    together = fork(host, ids, [cell], 10, DRAWS)
    trace = teach(host, together, fed, [3] + [1] * 7)
    for row in range(3):
        part = slice(row, row + 1)
        alone = fork(host, ids[part], [cell], 10, DRAWS[part])
        single = teach(host, alone, fed[part], [3] + [1] * 7)
        for step, (batched, one) in enumerate(zip(trace.kept[0], single.kept[0], strict=True)):
            for layer, kept in enumerate(one[2]):
                own = batched[2][layer][part].sort().values
                empty = own.shape[-1] - kept.shape[-1]  # ragged: slots that another sample's heads need come first
                assert torch.equal(own[..., empty:], kept.sort().values), (step, layer)
                assert (own[..., :empty] == -1).all()
        logits = torch.stack(trace.logits)[:, part]
        torch.testing.assert_close(logits, torch.stack(single.logits), **CLOSE)


@both
@pytest.mark.sampled(1)
def test_cells_step_together_as_alone(hold):
    """All methods at two budgets in one batch compute what each computes alone, each in a row of its own."""
    host, ids, fed, samples = engine("llama"), prompt(60, 2, seed=11), prompt(8, 2, seed=12), 2
    shape = host.shape(60)
    cells = [cell_of(method, shape, hold, shares) for method in METHODS.values() for shares in ((0.5, 0.9), (0.95,))]
    cells = list({(cell.method, cell.budget): cell for cell in cells}.values())
    groups = fork(host, ids, cells, 8, DRAWS[:2])
    order = [cell for group in groups for cell in group.cells]
    together = torch.stack(teach(host, groups, fed.repeat(len(order), 1), [1] * 8).logits, 1)
    for at, cell in enumerate(order):
        alone = teach(host, fork(host, ids, [cell], 8, DRAWS[:2]), fed, [1] * 8)
        mine = together[at * samples : (at + 1) * samples]
        torch.testing.assert_close(mine, torch.stack(alone.logits, 1), **CLOSE)
    assert len(order) == len(cells)
    assert {cell.label for cell in order} == {cell.label for cell in cells}


@pytest.mark.parametrize("family, tokens", [("llama", 64), ("gemma3", 64), ("mistral_sliding", 64), ("gemma3", 20)])
@pytest.mark.parametrize("chunk", [17, 5])
@pytest.mark.sampled(3)
def test_chunked_prefill_equals_whole(family, tokens, chunk):
    """Scores, totals, logits and kept sets of all post-prefill methods, with chunks that do not divide the prompt."""
    whole, parts, ids = engine(family), engine(family, chunk), distinct(tokens, 2)
    shape = whole.shape(tokens)
    cells = [cell for cell in cells_of(shape, True) if cell.pruner is None]
    methods = [cell.method for cell in cells if not cell.everything]
    one, other = (host.prefill(ids, methods, draws=DRAWS[:2]) for host in (whole, parts))
    torch.testing.assert_close(one.logits, other.logits, **CLOSE)
    for method in methods:
        for first, second in zip(one.observer.scores[method], other.observer.scores[method], strict=True):
            torch.testing.assert_close(first, second, **CLOSE)
    for first, second in zip(whole.fork(one, cells, 4), parts.fork(other, cells, 4), strict=True):
        assert first.cells == second.cells
        for mine, theirs in zip(first.layers, second.layers, strict=True):
            assert torch.equal(mine.positions, theirs.positions)
            torch.testing.assert_close(mine.keys, theirs.keys, **CLOSE)
            if mine.totals is not None:
                torch.testing.assert_close(mine.totals, theirs.totals, **CLOSE)


def tensors_of(thing):
    """All tensors in a dataclass, list or dictionary."""
    if isinstance(thing, torch.Tensor):
        return [thing]
    if isinstance(thing, dict):
        return [tensor for part in thing.values() for tensor in tensors_of(part)]
    if isinstance(thing, list | tuple):
        return [tensor for part in thing for tensor in tensors_of(part)]
    return [
        tensor for name in getattr(thing, "__dataclass_fields__", ()) for tensor in tensors_of(getattr(thing, name))
    ]


@both
@every_method
def test_a_fork_leaves_its_parent_and_its_sisters_alone(name, hold):
    """Decoding on one fork changes neither the prefill nor a second fork; nothing is shared; nothing is hoarded."""
    host, ids, fed = engine("llama"), prompt(60, 2, seed=14), prompt(10, 2, seed=15)
    cell = cell_of(METHODS[name], host.shape(60), hold)
    prefill = host.prefill(ids, watchers(cell), cell.pruner, DRAWS[:2])
    parent = tensors_of([prefill.layers, prefill.logits, prefill.observer.scores, prefill.observer.totals])
    before = [tensor.clone() for tensor in parent]
    first, second = host.fork(prefill, [cell], 10)[0], host.fork(prefill, [cell], 10)[0]
    untouched = [tensor.clone() for tensor in tensors_of(second.layers)]
    logits = torch.stack(teach(host, [first], fed, [1] * 10).logits)
    assert all(torch.equal(now, then) for now, then in zip(parent, before, strict=True))
    assert all(torch.equal(now, then) for now, then in zip(tensors_of(second.layers), untouched, strict=True))
    assert torch.equal(torch.stack(teach(host, [second], fed, [1] * 10).logits), logits)

    def owned(group):  # rotary tables are read only and shared on purpose
        return {
            tensor.untyped_storage().data_ptr()
            for entries in group.layers
            for tensor in tensors_of(replace(entries, rotary=None))
        }

    assert not owned(first) & owned(second)
    assert not (owned(first) | owned(second)) & {tensor.untyped_storage().data_ptr() for tensor in parent}


@every_method
def test_what_is_dropped_is_freed(name):
    """The slots of a fork hold what it keeps and the room asked for, no more."""
    host, ids, room = engine("llama"), prompt(60, 2, seed=16), 5
    cell = cell_of(METHODS[name], host.shape(60))
    group = fork(host, ids, [cell], room)[0]
    for layer, entries in enumerate(group.layers):
        kept = {group.measure(0, sample).entries[layer] for sample in range(2)}
        assert kept == {float(entries.filled)} or (entries.ragged and max(kept) <= entries.filled)  # the longest head's
        size = 2 * 2 * (entries.filled + room) * 8 * 8  # rows, heads, slots, dimensions, bytes
        assert entries.keys.untyped_storage().nbytes() == entries.values.untyped_storage().nbytes() == size


# ---------------------------------------------------------------------------------------------- ragged plans


@pytest.mark.parametrize("method", [Ragged(), Pyramid()], ids=["ragged", "pyramid"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
@pytest.mark.parametrize("chunks", [[1] * 14, [6] + [1] * 8], ids=["steps", "chunk"])
@both
def test_uneven_plans_equal_dense_attention_under_the_mask(method, family, chunks, hold):
    """Heads, samples and layers that keep different numbers of entries compute what the mask says, and keep them."""
    host, ids, fed = engine(family), prompt(80, 2, seed=17), prompt(14, 2, seed=18)
    cell = Cell("36", method, 36, hold)  # the smallest head has room for what is protected
    groups = fork(host, ids, [cell], 14)
    prefill, trace = groups[0].prefill, teach(host, groups, fed, chunks)
    masks = dense_masks(trace.kept[0], prefill, 94)
    expected = dense(family)(torch.cat((ids, fed), 1), masks)[:, ends(80, chunks)]
    torch.testing.assert_close(torch.stack(trace.logits, 1), expected, **CLOSE)
    plan = cell.method.plan(prefill.observer.scores[cell.method], 36, prefill.shape)
    for counts, layer in zip(plan, prefill.shape.evicted, strict=True):
        for seen, _, step in trace.kept[0]:  # under hold each head stays at its own plan
            assert torch.equal((step[layer] >= 0).sum(-1), counts if hold else counts + seen - 80)


def test_ragged_memory_is_smaller():
    """A ragged fork stores the longest head of each layer, not the prompt."""
    host, ids = engine("llama"), prompt(80, 2, seed=17)
    prefill = host.prefill(ids, [Ragged()])
    group = host.fork(prefill, [Cell("30", Ragged(), 30)], 4)[0]
    plan = Ragged().plan(prefill.observer.scores[Ragged()], 30, prefill.shape)
    for entries, parent, counts in zip(group.layers, prefill.layers, plan, strict=True):
        assert entries.keys.untyped_storage().nbytes() == 2 * 2 * (int(counts.max()) + 4) * 8 * 8
        assert entries.keys.untyped_storage().nbytes() < parent.keys.untyped_storage().nbytes()
    for sample in range(2):
        assert group.measure(0, sample).entries == plan[:, sample].double().mean(-1).tolist()


# ---------------------------------------------------------------------------------------------- edges and memory


@contextmanager
def at_most(seconds):
    """Raises where a call does not come back."""

    def late(*_):
        raise TimeoutError(f"not back after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@every_method
@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_the_shortest_prompts(name, tokens):
    """Prompts of one, two and five tokens prefill, are left whole by a budget of their size, and decode."""
    ids, fed = prompt(tokens, 2), prompt(12, 2, seed=1)
    host = engine("llama")
    cells = [cell_of(original(METHODS[name]), host.shape(tokens), hold, shares=(1.0,)) for hold in (False, True)]
    groups = fork(host, ids, cells, 12, DRAWS[:2])
    trace = teach(host, groups, fed.repeat(2, 1), [1] * 12)
    assert torch.isfinite(torch.stack(trace.logits)).all()
    assert {step.shape[-1] for kept in trace.kept for step in kept[0][2]} == {tokens}
    # the first step sees the whole prompt and itself: nothing was evicted before it
    expected = unmodified("llama")(torch.cat((ids, fed[:, :1]), 1)).logits[:, -1]
    torch.testing.assert_close(trace.logits[0], expected.repeat(2, 1), **CLOSE)


@at_cache_positions
@pytest.mark.parametrize("tokens", [1, 2, 3, 5])
def test_cache_positions_of_the_shortest_prompts(name, tokens):
    """They decode past the budget, or are refused where the prompt has fewer tokens than sinks; they never hang."""
    ids, fed, host = prompt(tokens), prompt(20, seed=1), engine("llama")
    cell = Cell("8", METHODS[name], 8, hold="hold" in METHODS[name].decodes)
    with at_most(5):
        try:
            groups = fork(host, ids, [cell], 20)
        except (ValueError, UserError) as error:
            assert tokens < cell.method.protects(8, host.shape(tokens))[0], error
            return
        trace = teach(host, groups, fed, [1] * 20)
    masks = dense_masks(trace.kept[0], groups[0].prefill, tokens + 20)
    expected = dense("llama")(torch.cat((ids, fed), 1), masks, ranks=ranks_of(masks, tokens + 20))
    # a short table is multiplied up many times, and with it the 6e-8 of float32 cos and sin
    torch.testing.assert_close(torch.stack(trace.logits, 1), expected[:, tokens:], rtol=1e-4, atol=1e-4)


@every_method
@pytest.mark.parametrize("family", ["llama", "mistral_sliding"])
@pytest.mark.sampled(12)
def test_observing_memory_grows_linearly(family, name, monkeypatch):
    """The largest tensor of a prefill doubles, not quadruples, when the prompt does."""
    # small blocks, or they hide the rest; the mask as SDPA materialises it on a CPU, which the counting mode cannot do
    monkeypatch.setitem(attention._BLOCK_ELEMENTS, "cpu", 1)
    monkeypatch.setattr(attention, "causal_lower_right", lambda q, k: torch.ones(q, k, dtype=torch.bool).tril(k - q))

    def run(tokens):
        host = Engine(build(family, torch.float32), evict_sliding=True, writer=WRITER)  # a new one: costs are kept
        method = METHODS[name]
        if type(method).passes is not Method.passes and hasattr(method, "chunk"):
            method = replace(method, chunk=700)  # few passes
        cell = cell_of(method, host.shape(tokens), shares=(0.9,))  # a wide recent window
        return largest(lambda: host.prefill(prompt(tokens), watchers(cell), cell.pruner))

    tokens = 1400 if family == "llama" else 512  # beyond constant blocks of 256 rows
    assert run(2 * tokens) / run(tokens) < 2.6  # 2 where it is linear, 4 where a square is formed


HOLDING = [
    n for n, m in METHODS.items() if m.own_budget is None and type(m).drop is Method.drop and "hold" in m.decodes
]


@pytest.mark.parametrize("name", HOLDING)
def test_decoding_memory_is_constant_under_hold(name):
    """Where the budget holds, the slots in use after 40 steps are those of the budget."""
    host, ids, fed = engine("llama"), prompt(40), prompt(40, seed=1)
    cell = cell_of(METHODS[name], host.shape(40), hold=True)
    groups = fork(host, ids, [cell], 1)  # room for one: a leak would not fit
    teach(host, groups, fed, [1] * 40)
    assert {entries.filled for entries in groups[0].layers} == {cell.budget}


def test_a_full_layer_is_an_error():
    """A step beyond the room that was asked for is refused, not written elsewhere."""
    host = engine("llama")
    groups = fork(host, prompt(10), [everything()], 2)
    with pytest.raises(RuntimeError, match="full"):
        teach(host, groups, prompt(3), [1] * 3)


def test_positions_name_each_entry_once_in_order():
    """After a fork the entries of every head stand in order of position."""
    host = engine("llama")
    for cell in cells_of(host.shape(60), False):
        for kept in positions(fork(host, prompt(60, 2), [cell], 0, DRAWS[:2])[0]):
            filled = kept.masked_fill(kept < 0, 1000)  # ragged heads: empty slots come last
            assert ((filled.diff() > 0) | (filled[..., 1:] == 1000)).all(), cell
