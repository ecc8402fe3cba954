"""Static decoding against ordinary decoding, and what makes it static: every step runs the same operations."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from decoder_steps import DRAWS, STEPS, TOKENS, decoded
from pairs import pairs
from pvcbench.architectures import families
from pvcbench.engine.decode import Decoder
from pvcbench.engine.engine import Engine
from pvcbench.engine.evict import Cell
from pvcbench.engine.rotary import angles, rotate, turn
from pvcbench.engine.static_decode import StaticDecoder
from tiny import FAMILIES, METHODS, WRITER, build, cell_of, engine, fork, positions, prompt

# Both paths sum the same float64 terms in another order of slots. Cache positions turn keys by the model's own float32
# tables, which one path composes for a long shift as the other applies them in turn.
CLOSE, CLOSE_ROTATED = {"rtol": 1e-9, "atol": 1e-9}, {"rtol": 1e-4, "atol": 1e-4}
pytestmark = pytest.mark.usefixtures("inference")
STEADY = sorted(name for name, method in METHODS.items() if method.steady)


@pytest.mark.parametrize("name, family", pairs(STEADY, list(FAMILIES), ["llama"]))
def test_static_steps_equal_ordinary_ones(name, family):
    """The same logits and the same entries after every step, for a growing cache, a held one and the full one."""
    host, fed = engine(family), prompt(STEPS, 2, seed=3)
    cells = [cell_of(METHODS[name], host.shape(TOKENS), hold) for hold in (False, True)]
    cells += [] if METHODS[name].reference else [Cell("1.0", METHODS["full"], None, everything=True)]
    expected, sets, _, _ = decoded(Decoder, family, cells, fed)
    mine, own, _, _ = decoded(StaticDecoder, family, cells, fed)
    close = CLOSE_ROTATED if METHODS[name].positions == "cache" else CLOSE
    torch.testing.assert_close(mine, expected, **close)
    assert own == sets


@pytest.mark.parametrize("family", ["llama", "gemma4_text"])  # in the second, layers read the slots of others
@pytest.mark.parametrize("name, hold", [("full", False), ("h2o", True), ("streaming_llm", True)])
def test_the_decoding_kernel_gives_the_same_logits(name, hold, family):
    """With the kernel (here in Triton's interpreter) logits are those of the masked attention, to float32."""
    model = build(family, torch.float32, exact=False) if family in FAMILIES else families.build(family)
    host, fed, results = Engine(model, writer=WRITER), prompt(3, 2, seed=3), []
    sliding = {False} if any(host.windows) else set()  # a window is a mask, which the kernel has none of
    cell = cell_of(METHODS[name], host.shape(TOKENS), hold)
    for backend in ("blocked", "triton"):
        groups = fork(host, prompt(TOKENS, 2), [cell], 3, DRAWS)
        decoder = StaticDecoder(host.call, groups, backend=backend)
        assert {slots.kernel for slots in decoder._every()} == {backend == "triton"} | sliding
        results.append(torch.stack([decoder.step(fed[:, n : n + 1]).clone() for n in range(3)], 1))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)  # float32 logits of size 5, sums in another order


@pytest.mark.parametrize("name", STEADY)
@pytest.mark.sampled(6)
def test_finish_leaves_what_any_decoder_leaves(name):
    """After `finish`, slots are filled from the left, and an ordinary decoder goes on with the same numbers."""
    host, fed = engine("llama"), prompt(STEPS, 2, seed=3)
    cells = [cell_of(METHODS[name], host.shape(TOKENS), hold) for hold in (False, True)]
    results = []
    for kind in (Decoder, StaticDecoder):
        ids = prompt(TOKENS, 2)
        groups = fork(host, ids, cells, STEPS + 5, DRAWS)
        decoder = kind(host.call, groups)
        for number in range(STEPS):
            decoder.step(fed[:, number : number + 1].repeat(len(cells), 1))
        if kind is StaticDecoder:
            decoder.finish()
        for group in groups:
            for entries, layer in zip(group.layers, positions(group), strict=True):
                assert torch.equal((layer >= 0).sum(-1), entries.lengths)
        after = Decoder(host.call, groups)
        after.cache.seen = TOKENS + STEPS
        results.append(torch.stack([after.step(fed[:, :1].repeat(len(cells), 1)) for _ in range(5)], 1))
    close = CLOSE_ROTATED if METHODS[name].positions == "cache" else CLOSE
    torch.testing.assert_close(results[1], results[0], **close)


class Recorder(TorchDispatchMode):
    """Notes every operation with the shapes of its tensors and its numbers."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        leaves = torch.utils._pytree.tree_leaves((args, kwargs, out))
        self.seen.append((str(func), [tuple(one.shape) if isinstance(one, torch.Tensor) else one for one in leaves]))
        return out


def recorded(decoder, ids):
    with Recorder() as recorder:
        decoder.step(ids)
    return recorder.seen


@pytest.mark.parametrize("name", STEADY)
@pytest.mark.parametrize("hold", [False, True], ids=["grow", "hold"])
@pytest.mark.sampled(6)
def test_every_step_runs_the_same_operations(name, hold):
    """Operations, shapes and numbers of the 2nd and the 20th step are equal; none reads a value back to the host.

    That is what a CUDA graph needs. An ordinary decoder's steps do differ, so the comparison can see it.
    """
    host, ids = engine("llama"), torch.tensor([[7], [9]])
    cell = cell_of(METHODS[name], host.shape(TOKENS), hold)
    runs = {}
    for kind in (StaticDecoder, Decoder):
        decoder = kind(host.call, fork(host, prompt(TOKENS, 2), [cell], STEPS, DRAWS))
        runs[kind] = [recorded(decoder, ids) for _ in range(20)]
    static = runs[StaticDecoder]
    assert static[1] == static[19]
    assert not [name for name, _ in static[1] if "_local_scalar_dense" in name or "nonzero" in name or "item" in name]
    assert runs[Decoder][1] != runs[Decoder][19]


@pytest.mark.parametrize("hold", [False, True], ids=["grow", "hold"])
def test_a_step_copies_no_layer(hold):
    """No operation of a step returns new memory as large as a layer's keys: nothing is gathered whole."""
    host, tokens = engine("llama"), 400
    method = METHODS["h2o"]
    cell = Cell("200", method.resolve(200, host.shape(tokens)), 200, hold)
    decoder = StaticDecoder(host.call, fork(host, prompt(tokens, 2), [cell], 8, DRAWS))
    layer = decoder.groups[0].layers[0].keys
    storages = {part.untyped_storage().data_ptr() for entries in decoder.groups[0].layers for part in owned(entries)}
    largest = 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for part in torch.utils._pytree.tree_leaves(out):
                if isinstance(part, torch.Tensor) and part.untyped_storage().data_ptr() not in storages:
                    largest = max(largest, part.untyped_storage().nbytes())
            return out

    with Sizes():
        decoder.step(torch.tensor([[7], [9]]))
    assert largest < layer.untyped_storage().nbytes() / 2


def owned(entries):
    return [part for part in (entries.keys, entries.values, entries.totals) if part is not None]


@pytest.mark.slow
def test_a_trial_step_leaves_no_trace():
    """What capturing runs beforehand changes nothing: the steps after it are those without it."""
    host, fed = engine("llama"), prompt(STEPS, 2, seed=3)
    for name in STEADY:
        cells = [cell_of(METHODS[name], host.shape(TOKENS), hold) for hold in (False, True)]
        results = []
        for trials in (0, 3):
            decoder = StaticDecoder(host.call, fork(host, prompt(TOKENS, 2), cells, STEPS, DRAWS))
            for _ in range(trials):
                decoder._trial()
            results.append(torch.stack([decoder.step(fed[:, n : n + 1].repeat(2, 1)).clone() for n in range(9)], 1))
        assert torch.equal(*results), name


def test_what_is_not_steady_is_refused():
    """A method that compresses blocks, a prompt shorter than its budget, and a step too many each say why."""
    host, ids = engine("llama"), prompt(TOKENS, 2)
    unsteady = next(method for method in METHODS.values() if not method.steady)
    groups = fork(host, ids, [cell_of(unsteady, host.shape(TOKENS), True)], 4)
    with pytest.raises(ValueError, match="does not evict one entry in every step"):
        StaticDecoder(host.call, groups)
    StaticDecoder(host.call, fork(host, ids, [cell_of(unsteady, host.shape(TOKENS), False)], 4))
    held = replace(cell_of(METHODS["h2o"], host.shape(TOKENS), True), budget=TOKENS + 5)
    with pytest.raises(ValueError, match="shorter than the budget"):
        StaticDecoder(host.call, fork(host, ids, [held], 8))
    decoder = StaticDecoder(host.call, fork(host, ids, [cell_of(METHODS["h2o"], host.shape(TOKENS), False)], 1))
    decoder.step(torch.tensor([[7], [9]]))
    with pytest.raises(RuntimeError, match="full"):
        decoder.step(torch.tensor([[7], [9]]))
    with pytest.raises(ValueError, match="room"):
        StaticDecoder(host.call, fork(host, ids, [cell_of(METHODS["h2o"], host.shape(TOKENS), False)], 0))


@pytest.mark.parametrize("scaling", [1.0, 1.1386])
@pytest.mark.parametrize("first", [0, 5, 30, 31, 60])
def test_angles_turn_as_rotate_does(first, scaling):
    """The angles of consecutive shifts, past the end of the table too, turn keys as `rotate` by each shift does."""
    frequencies = 10000.0 ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    turns = torch.arange(32, dtype=torch.float64)[:, None] * frequencies.repeat(2)
    table = (turns.cos()[None] * scaling, turns.sin()[None] * scaling)
    key = torch.randn(2, 1, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(first))
    cos, sin = angles(table, first, 40)
    for number in range(40):
        expected = rotate(key, first + number, table)
        torch.testing.assert_close(turn(key, cos[number], sin[number]), expected, rtol=1e-12, atol=1e-12)
