"""Equal scores: the oldest entry goes first, whichever way a document is streamed or a cache held."""

from dataclasses import fields

import pytest
import torch

from decoder_steps import decoded
from pvcbench.engine import answers
from pvcbench.engine.decode import Decoder
from pvcbench.engine.engine import Engine
from pvcbench.engine.evict import Cell
from pvcbench.engine.static_decode import StaticDecoder
from pvcbench.policy import Shape, lowest
from streams import STREAMS, cell, logprobs
from tiny import build, dense, dense_masks, engine, exact_rotary, prompt, teach

pytestmark = pytest.mark.usefixtures("inference")
DRAWS = torch.tensor([3, 11])
STEPS = {"random": 2.0**-51, "h2o": 0.5, "h2o_mean": 20.0, "h2o_value_norm": 0.25, "knorm": 0.5, "keydiff": 2.0}
STEPS |= {"tova": 4.0}  # by how much a score is multiplied before it is rounded to a whole number
NAMES = [name for name in STEPS if name in STREAMS]


def coarse(name):
    """The method with its scores rounded to a few values, so that most evictions choose among equals."""
    method, scale = STREAMS[name], STEPS[name]
    kind = type(method)
    rounded = type("Coarse", (kind,), {"scores": lambda self, seen: (kind.scores(self, seen).double() * scale).round()})
    return rounded(**{field.name: getattr(method, field.name) for field in fields(method)})


def repeating(tokens, seed):
    """A prompt of few different tokens, so that norms of keys come again in the first layer."""
    return prompt(tokens, 2, seed) % 13 + 1


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("budget, every", [(5, 1), (16, 1), (31, 1), (16, 5)])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.sampled(6)
def test_equal_scores_stream_as_token_by_token(name, budget, every, seed):
    method, ids = coarse(name), repeating(61, seed)
    fast, mine = engine("llama").stream(ids, cell(method, budget), every, DRAWS)
    slow, theirs = engine("llama").stream(ids, cell(method, budget), every, DRAWS, scan=False)
    torch.testing.assert_close(fast.logprobs, slow.logprobs, rtol=0, atol=1e-9)
    for one, other in zip(mine.layers, theirs.layers, strict=True):
        kept = [entries.positions[:, :, : entries.filled].sort(-1).values for entries in (one, other)]
        assert torch.equal(*kept)


@pytest.mark.parametrize("name", NAMES)
def test_equal_scores_stream_as_dense_attention_under_the_kept_sets(name):
    method, ids, budget, host = coarse(name), repeating(41, 0)[:1], 12, engine("llama")
    prefill = host.prefill(
        ids[:, :budget], [method], draws=DRAWS[:1], shape=Shape(budget, 4, host.shape(ids.shape[1]).evicted)
    )
    groups = host.fork(prefill, [cell(method, budget)], ids.shape[1])
    trace = teach(host, groups, ids[:, budget:], [1] * (ids.shape[1] - budget))
    wanted = dense("llama")(ids, masks=dense_masks(trace.kept[0], prefill, ids.shape[1]))
    scored, _ = host.stream(ids, cell(method, budget), 1, DRAWS[:1])
    torch.testing.assert_close(scored.logprobs, logprobs(wanted, ids), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.sampled(2)
def test_equal_scores_are_held_alike_in_static_steps(name):
    fed, one = prompt(24, 2, seed=3), Cell("20", coarse(name), 20, True)
    expected, sets, _, _ = decoded(Decoder, "llama", [one], fed)
    mine, own, _, _ = decoded(StaticDecoder, "llama", [one], fed)
    torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-9)
    assert own == sets


@pytest.fixture
def decisions(monkeypatch):
    """What each decision drops, {(layer, tokens seen): positions}, and by how much a kept entry scores lower."""
    found, asked = {}, answers.dropped

    def recorded(method, seen, budget, strict=False):
        slots = asked(method, seen, budget, strict)
        if slots is not None:
            worth = method.scores(seen).masked_fill(seen.positions < 0, float("inf"))
            below = worth.gather(-1, slots).amax(-1) - worth.scatter(-1, slots, float("inf")).amin(-1)
            found[seen.layer, seen.seen] = seen.positions.gather(-1, slots), below.max().item()
        return slots

    monkeypatch.setattr(answers, "dropped", recorded)
    return found


def seen_masks(decisions, batch, heads, tokens):
    """The mask of each layer: a row sees all before it but what was dropped by then."""
    masks = [torch.ones(batch, heads, tokens, tokens, dtype=torch.bool) for _ in range(4)]
    for (layer, seen), (positions, _) in decisions.items():
        gone = torch.zeros(batch, heads, tokens, dtype=torch.bool).scatter_(-1, positions, True)
        masks[layer][:, :, seen:] &= ~gone[:, :, None]
    return masks.__getitem__


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("name, budget, every", [("knorm", 8, 1), ("knorm", 24, 1), ("knorm", 8, 5), ("keydiff", 8, 1)])
def test_norms_that_come_again_are_told_apart_by_rounding_alone(name, budget, every, scan, decisions):
    """With exact rotary tables a token's key has one norm everywhere in the first layer, up to the last digit.

    Which entry goes is then rounding's choice, so the two ways part. Each drops a lowest entry, and each equals dense
    attention under what it kept.
    """
    model = build("llama")
    model.model.rotary_emb.forward = exact_rotary(model)
    host, ids = Engine(model), repeating(61, 0)
    scored, _ = host.stream(ids, cell(STREAMS[name], budget), every, DRAWS, scan=scan)
    assert len(decisions) == 4 * -((budget - 61) // every) and max(below for _, below in decisions.values()) < 1e-12
    wanted = dense("llama", exact_angles=True)(ids, masks=seen_masks(decisions, 2, 2, 61))
    torch.testing.assert_close(scored.logprobs, logprobs(wanted, ids), rtol=0, atol=1e-9)
    host.release()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_of_equal_scores_the_oldest_goes_first_in_any_order_of_slots(count):
    worth = torch.tensor([5.0, 1.0, 1.0, float("inf"), 1.0, 7.0])
    positions = torch.tensor([2, 9, 4, -1, 6, 0])
    for order in (torch.randperm(6) for _ in range(20)):
        slots = lowest(worth[order][None, None], positions[order][None, None], count)
        assert positions[order][slots[0, 0]].tolist() == [4, 6, 9][:count]


def test_empty_slots_go_last_even_where_all_else_is_protected():
    worth, positions = torch.full((1, 1, 4), float("inf")), torch.tensor([[[-1, 5, -1, 3]]])
    assert lowest(worth, positions, 1).tolist() == [[[3]]] and lowest(worth, positions, 2).tolist() == [[[3, 1]]]
