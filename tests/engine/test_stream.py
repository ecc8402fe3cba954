"""Scoring given tokens through compressed caches: the streaming pass against decoding, dense attention and formulas."""

from dataclasses import replace

import pytest
import torch

from pairs import pairs
from pvcbench.engine.teacher_forcing import Scored, tokens_per_call
from pvcbench.policy import Shape
from streams import STREAMS, cell, logprobs
from tiny import (
    FAMILIES,
    METHODS,
    build,
    cell_of,
    dense,
    dense_masks,
    engine,
    largest,
    original,
    prompt,
    teach,
    unmodified,
)

pytestmark = pytest.mark.usefixtures("inference")
DRAWS = torch.tensor([3, 11])


def exact(method):
    """Whether nothing is rotated, so that float64 holds to the last digits."""
    return method.positions == "original"


@pytest.mark.parametrize("every", [1, 5])
@pytest.mark.parametrize("name, family", pairs(STREAMS, list(FAMILIES), ["llama"]))
@pytest.mark.sampled(5)
def test_layer_by_layer_equals_token_by_token(name, family, every):
    method, ids = STREAMS[name], prompt(57, batch=2)
    fast, mine = engine(family).stream(ids, cell(method), every, DRAWS)
    slow, theirs = engine(family).stream(ids, cell(method), every, DRAWS, scan=False)
    assert fast.logprobs.shape == (2, 56)
    # cache positions: the sinks or the queries are turned by the model's float32 cos and sin
    torch.testing.assert_close(fast.logprobs, slow.logprobs, rtol=0, atol=1e-9 if exact(method) else 1e-5)
    assert torch.equal(fast.greedy, slow.greedy)
    for layer in mine.prefill.shape.evicted:
        kept = [g.layers[layer].positions[:, :, : g.layers[layer].filled].sort(-1).values for g in (mine, theirs)]
        assert torch.equal(*kept)


@pytest.mark.parametrize("family", ["llama", "gemma3", "mistral_sliding"])
@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.sampled(10)
def test_streaming_equals_dense_attention_under_its_kept_sets(name, family):
    """The kept sets come from decoding; the logits from the unmodified model under the equivalent mask."""
    method, ids, budget = original(STREAMS[name]), prompt(41), 16
    host = engine(family)
    if method.reference:
        pytest.skip("the full cache has no budget; see the test of the unmodified model")
    shape = host.shape(ids.shape[1])
    begun = Shape(budget, shape.layers, shape.evicted)
    prefill = host.prefill(ids[:, :budget], [method], draws=DRAWS[:1], shape=begun)
    groups = host.fork(prefill, [cell(method)], ids.shape[1])
    trace = teach(host, groups, ids[:, budget:], [1] * (ids.shape[1] - budget))
    wanted = dense(family)(ids, masks=dense_masks(trace.kept[0], prefill, ids.shape[1]))
    scored, _ = host.stream(ids, cell(method), 1, DRAWS[:1])
    torch.testing.assert_close(scored.logprobs, logprobs(wanted, ids), rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_budget_that_holds_everything_equals_the_unmodified_model(family):
    ids = prompt(33, batch=2)
    wanted = logprobs(unmodified(family)(input_ids=ids, use_cache=False).logits, ids)
    for method, budget in ((METHODS["full"], None), (METHODS["h2o"], 33), (original(METHODS["streaming_llm"]), 40)):
        scored, _ = engine(family).stream(ids, replace(cell(method), budget=budget), 1, DRAWS)
        torch.testing.assert_close(scored.logprobs, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", [name for name, method in STREAMS.items() if not method.reference])
def test_never_more_than_the_budget_and_sinks_and_window_survive(name):
    method, budget = STREAMS[name], 12
    for tokens in (12, 13, 40, 77):
        _, group = engine("llama").stream(prompt(tokens), cell(method, budget), 1, DRAWS[:1])
        for entries in group.layers:
            places = entries.positions[0]
            assert entries.filled == min(budget, tokens) and (entries.lengths == entries.filled).all()
            assert all(len(set(head.tolist())) == entries.filled for head in places)
            first, last = method.protects(budget, group.prefill.shape)
            for head in places.tolist():
                assert set(range(first)) <= set(head) and set(range(tokens - last, tokens)) <= set(head)


def test_the_window_of_streaming_llm_in_closed_form():
    _, group = engine("llama").stream(prompt(50), cell(METHODS["streaming_llm"], 12), 1, DRAWS[:1])
    wanted = [0, 1, 2, 3, *range(42, 50)]
    assert all(head == wanted for entries in group.layers for head in entries.positions[0].tolist())


@pytest.mark.parametrize("budget", [55, 56])
def test_budgets_just_below_the_document(budget):
    ids, method = prompt(57), STREAMS["h2o"]
    fast, slow = (
        engine("llama").stream(ids, cell(method, budget), 1, DRAWS[:1], scan=scan)[0] for scan in (True, False)
    )
    torch.testing.assert_close(fast.logprobs, slow.logprobs, rtol=0, atol=1e-9)


def test_layers_with_budgets_of_their_own():
    class Slanted(type(STREAMS["h2o"])):
        def plan(self, scores, budget, shape):
            counts = super().plan(scores, budget, shape)
            return [own + more for own, more in zip(counts, [6, 2, -2, -6], strict=True)]

    ids = prompt(70, batch=2)
    fast, group = engine("llama").stream(ids, cell(Slanted()), 3, DRAWS)
    slow, _ = engine("llama").stream(ids, cell(Slanted()), 3, DRAWS, scan=False)
    assert [entries.filled for entries in group.layers] == [22, 18, 14, 10]
    torch.testing.assert_close(fast.logprobs, slow.logprobs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["h2o", "streaming_llm", "random"])
@pytest.mark.sampled(1)
def test_the_mean_agrees_in_float32(name):
    """Near-ties may flip an eviction in float32; the mean NLL stays within 1e-4 nats."""
    from pvcbench.engine.engine import Engine

    host = Engine(build("llama", torch.float32, exact=False))
    ids = prompt(300)
    fast, slow = (host.stream(ids, cell(STREAMS[name], 40), 1, DRAWS[:1], scan=scan)[0] for scan in (True, False))
    assert abs((fast.logprobs.mean() - slow.logprobs.mean()).item()) < 1e-4
    host.release()


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.sampled(1)
def test_memory_does_not_grow_with_the_document(family, monkeypatch):
    monkeypatch.setattr("pvcbench.engine.teacher_forcing.CALL_TOKENS", 64)

    def elements(tokens):
        return largest(lambda: engine(family).stream(prompt(tokens), cell(STREAMS["h2o"]), 1, DRAWS[:1]))

    assert elements(600) <= 1.1 * elements(200)  # nearly all of it is a segment's logits and mask


def test_segments_change_nothing(monkeypatch):
    ids, results = prompt(90), []
    for bytes_of_a_call in (1, 2**28):
        monkeypatch.setattr("pvcbench.engine.teacher_forcing.CALL_BYTES", bytes_of_a_call)
        results += [engine("llama").stream(ids, cell(STREAMS[name]), 7, DRAWS[:1])[0] for name in STREAMS]
    monkeypatch.setattr("pvcbench.engine.teacher_forcing.CALL_BYTES", 1)
    assert tokens_per_call(151, 1) == 64  # so the first pass had two segments
    for short, whole in zip(results[: len(STREAMS)], results[len(STREAMS) :], strict=True):
        torch.testing.assert_close(short.logprobs, whole.logprobs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("hold", [False, True])
@pytest.mark.sampled(14)
def test_a_scored_continuation_equals_decoding_it_token_by_token(name, hold):
    """Every method: the continuation in one call gives the likelihoods that single steps give."""
    host, method, ids = engine("llama"), METHODS[name], prompt(60, batch=1)
    context, fed, wanted = ids[:, :40], ids[:, 40:59], ids[:, 41:]
    one = cell_of(method, host.shape(40), hold)
    pruner = {"pruner": one.pruner} if one.pruner is not None else {"methods": [] if one.everything else [one.method]}

    def forked():
        return host.fork(host.prefill(context, draws=DRAWS[:1], **pruner), [one], fed.shape[1])

    scored = host.score(forked(), fed, wanted)
    steps = torch.stack(teach(host, forked(), fed, [1] * fed.shape[1]).logits, 1)
    torch.testing.assert_close(
        scored.logprobs, steps.log_softmax(-1).gather(-1, wanted[..., None])[..., 0], rtol=0, atol=1e-9
    )
    assert torch.equal(scored.greedy, steps.argmax(-1) == wanted)


def test_scores_are_log_softmax_in_float32_or_better():
    logits, wanted = torch.randn(2, 5, 11, dtype=torch.float64) * 20, torch.randint(11, (2, 5))
    scored = Scored.of(logits, wanted)
    torch.testing.assert_close(scored.logprobs, logits.log_softmax(-1).gather(-1, wanted[..., None])[..., 0])
    assert Scored.of(logits.bfloat16(), wanted).logprobs.dtype == torch.float32


def test_uneven_heads_are_refused_not_mangled():
    class Uneven(type(METHODS["random"])):
        def plan(self, scores, budget, shape):
            counts = super().plan(scores, budget, shape)
            for own in counts:
                own[:, 0] -= 3
            return counts

    with pytest.raises(ValueError, match="equally many entries"):
        engine("llama").stream(prompt(40), cell(Uneven()), 1, DRAWS[:1])
