"""Sliding layers that evict choose among what the next token sees, and never take more than the full cache does."""

from dataclasses import replace

import pytest
import torch

import tiny
from methods.streaming_llm import StreamingLLM
from pvcbench.engine.engine import Engine
from pvcbench.engine.evict import Cell
from pvcbench.errors import OutOfReach
from pvcbench.evaluation.cells import Point
from tiny import METHODS, WINDOW, WRITER, build, dense, dense_masks, fork, positions, prompt, teach

pytestmark = pytest.mark.usefixtures("inference")
CLOSE = {"rtol": 1e-9, "atol": 1e-9}  # float64, see test_engine.py
SCORED = [name for name, method in METHODS.items() if not (method.reference or method.prunes)]
HOLDING = [name for name in SCORED if "hold" in METHODS[name].decodes and "streaming" in METHODS[name].protocols]
TOKENS = 70  # about three windows
SHARES = (0.3, 0.5, 0.9)


@pytest.fixture(scope="module", params=["mistral_sliding", "gemma3"])
def host(request):
    """An engine whose sliding layers evict: all layers, or every other."""
    return Engine(build(request.param), evict_sliding=True, writer=WRITER), request.param


def shares_of(method, host, hold=False):
    """Cells at shares of the prompt, as a run makes them; those the method reaches."""
    shape = host.shape(TOKENS)
    try:
        return [Point("x", method, str(share), share).cell(shape, hold) for share in SHARES]
    except OutOfReach:
        return [Point("x", method, "0.9", 0.9).cell(shape, hold)]


@pytest.mark.parametrize("name", SCORED)
@pytest.mark.sampled(12)
def test_what_is_kept_is_seen_by_the_next_token(host, name):
    """Every kept entry of a sliding layer lies in the next token's window, and bytes are at most the full cache's."""
    engine, _ = host
    ids, full = prompt(TOKENS, 2), Cell("1.0", METHODS["full"], None, everything=True)
    [whole] = fork(engine, ids, [full], 0)
    for cell in shares_of(METHODS[name], engine):
        [group] = fork(engine, ids, [cell], 0)
        for layer, (own, most) in enumerate(zip(positions(group), positions(whole), strict=True)):
            if engine.windows[layer] is not None:
                assert not ((own >= 0) & (own <= TOKENS - WINDOW)).any(), (cell, layer)
            assert (own >= 0).sum() <= (most >= 0).sum()
        assert group.measure(0, 0).kv_bytes <= whole.measure(0, 0).kv_bytes


@pytest.mark.parametrize("share", SHARES)
def test_a_share_is_one_of_what_the_full_cache_stores(host, share):
    """In a layer with a window of w the full cache stores w - 1 entries; entries asked as such are no share."""
    engine, _ = host
    cell = Point("x", METHODS["random"], str(share), share).cell(engine.shape(TOKENS), False)
    counted = replace(cell, share=None)
    for one, wanted in ((cell, round(share * (WINDOW - 1))), (counted, min(int(share * TOKENS), WINDOW - 1))):
        [group] = fork(engine, prompt(TOKENS), [one], 0)
        for layer, window in enumerate(engine.windows):
            assert (group.layers[layer].lengths == (int(share * TOKENS) if window is None else wanted)).all()


@pytest.mark.parametrize("name", HOLDING)
@pytest.mark.sampled(3)
def test_under_hold_what_nobody_sees_goes_first(host, name):
    """After every step the layer holds its budget, all of it seen by the next token; logits equal dense masks."""
    engine, family = host
    ids, fed = prompt(TOKENS, 2, seed=3), prompt(30, 2, seed=4)
    for cell in shares_of(tiny.original(METHODS[name]), engine, hold=True):
        groups = fork(engine, ids, [cell], 30)
        prefill, trace = groups[0].prefill, teach(engine, groups, fed, [1] * 30)
        expected = dense(family)(torch.cat((ids, fed), 1), dense_masks(trace.kept[0], prefill, TOKENS + 30))
        torch.testing.assert_close(torch.stack(trace.logits, 1), expected[:, TOKENS:], **CLOSE)
        for seen, _, step in trace.kept[0]:
            for layer, window in enumerate(engine.windows):
                if window is not None:
                    assert step[layer].shape[-1] == round(cell.share * (WINDOW - 1))
                    assert (step[layer] > seen - WINDOW).all()


@pytest.mark.parametrize("at", ["original", "cache"])
def test_streaming_llm_has_no_sinks_in_a_sliding_layer(host, at):
    """The first tokens are out of sight there: the newest alone stay, where they are."""
    engine, _ = host
    cell = Point("x", StreamingLLM(positions=at), "0.5", 0.5).cell(engine.shape(TOKENS), True)
    [group] = fork(engine, prompt(TOKENS), [cell], 3)
    newest = round(0.5 * (WINDOW - 1))
    for layer, window in enumerate(engine.windows):
        if window is not None:
            assert group.layers[layer].sinks is None
            assert positions(group)[layer][0, 0].tolist() == list(range(TOKENS - newest, TOKENS))


@pytest.mark.parametrize("name", HOLDING)
@pytest.mark.sampled(3)
def test_streaming_equals_decoding_token_by_token(host, name):
    """The scan and the slow path agree where sliding layers evict, and no layer holds more than it may."""
    engine, _ = host
    cell = Point("x", METHODS[name], "0.5", 0.5).cell(engine.shape(TOKENS), True)
    fast, group = engine.stream(prompt(TOKENS), cell, draws=torch.tensor([5]))
    slow, _ = engine.stream(prompt(TOKENS), cell, draws=torch.tensor([5]), scan=False)
    # cache positions: the sinks or the queries are turned by the model's float32 cos and sin
    torch.testing.assert_close(fast.logprobs, slow.logprobs, rtol=0, atol=1e-5)
    for layer, window in enumerate(engine.windows):
        granted = cell.budget if window is None else round(0.5 * (WINDOW - 1))
        assert group.layers[layer].filled == granted
