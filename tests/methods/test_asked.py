"""What methods ask for beyond column sums: rows, keys before rotary embedding, notes for plans; free where unasked."""

from collections import Counter
from dataclasses import dataclass

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kept_sets import attention_of
from naive_output import attention_inputs, matrices
from pvcbench.engine import answers
from pvcbench.engine.evict import Cell
from pvcbench.engine.prefill import PrefillCache
from pvcbench.errors import MethodError
from pvcbench.policy import Method
from tiny import engine, prompt

pytestmark = pytest.mark.usefixtures("inference")
SEEN = {}


@dataclass(frozen=True)
class Plain(Method):
    """Asks for nothing."""

    def scores(self, seen):
        SEEN[type(self).__name__, seen.layer] = seen
        return seen.positions.double()


class Asks(Plain):
    needs_rows = 5
    needs_plain_keys = True
    needs_output = True
    needs_hidden = True
    ragged_batch = True

    def notes(self, seen):
        return seen.rows.query.double().mean((1, 2, 3))

    def plan(self, scores, budget, shape, notes):
        SEEN["notes"] = notes
        return super().plan(scores, budget, shape)


class MoreRows(Plain):
    needs_rows = 9


class Counting(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def operations(host, ids, methods):
    """The operations of a prefill."""
    with Counting() as mode:
        host.prefill(ids, methods)
    return mode.counts


def test_what_nobody_asks_for_costs_no_operation(monkeypatch):
    """A prefill runs as many operations as one whose engine knows none of this; one that asks runs more."""
    host, ids = engine("llama"), prompt(40, 2)
    host.prefill(ids, [Asks()])  # how the model turns is found once
    now, asked = operations(host, ids, [Plain()]), operations(host, ids, [Asks()])
    monkeypatch.setattr(PrefillCache, "_keep_newest", lambda self, layer, query: None)
    monkeypatch.setattr(PrefillCache, "_keep_hidden", lambda self, layer, key: None)
    for name in ("_plain_keys", "_projection"):
        monkeypatch.setattr(PrefillCache, name, lambda *arguments: pytest.fail("nobody asked for it"))
    monkeypatch.setattr(answers, "notes", lambda *arguments: None)
    assert operations(host, ids, [Plain()]) == now and sum(asked.values()) > sum(now.values())


@pytest.mark.parametrize("family, chunk", [("llama", None), ("qwen3", 7), ("mistral_sliding", None), ("llama", 3)])
def test_rows_are_the_last_of_dense_attention(family, chunk):
    """Each method sees as many as it asked for, in pieces or whole, and one that asked for none sees none."""
    host, ids = engine(family, chunk), prompt(31, 2, seed=2)
    host.prefill(ids, [Asks(), MoreRows(), Plain()])
    for layer, dense in enumerate(attention_of(family, ids)):
        for name, count in (("Asks", 5), ("MoreRows", 9)):
            rows = SEEN[name, layer].rows
            found = torch.zeros(2, dense.shape[1], count, 31, dtype=torch.float64)
            for first, after, weights in rows.blocks():
                found[:, :, first:after, : weights.shape[-1]] = weights
            torch.testing.assert_close(found, dense[:, :, -count:], rtol=1e-9, atol=1e-9)
        for name in ("MoreRows", "Plain"):
            assert all(getattr(SEEN[name, layer], part) is None for part in ("plain_keys", "output", "hidden"))
        assert SEEN["Plain", layer].rows is None


@pytest.mark.parametrize("family", ["llama", "llama_yarn", "phi3", "gemma3"])
def test_plain_keys_turned_again_are_those_after_rotary_embedding(family):
    """By the model's own tables, also where part of the dimensions turns or all are scaled; the first token's stay."""
    host, ids = engine(family), prompt(40, 2, seed=3)
    prefill = host.prefill(ids, [Asks()])
    for layer in prefill.shape.evicted:
        seen = SEEN["Asks", layer]
        plain, (cos, sin) = seen.plain_keys(), prefill.rotary[layer]
        again = prefill.turns[layer].keys(plain, cos[:, None].double(), sin[:, None].double())
        torch.testing.assert_close(again, seen.keys, rtol=1e-9, atol=1e-9)
        turned = (plain - seen.keys).abs().amax((0, 1, 3))
        assert (turned[1:] > 1e-3).all() and (family == "llama_yarn" or turned[0] < 1e-9)


@pytest.mark.parametrize("family, chunk", [("llama", None), ("qwen3", 7), ("llama", 30)])
def test_hidden_states_are_those_before_attention(family, chunk):
    """What comes out of the norm before it, in pieces or whole."""
    host, ids = engine(family, chunk), prompt(31, 2, seed=5)
    host.prefill(ids, [Asks()])
    for layer, expected in enumerate(attention_inputs(family, ids)):
        torch.testing.assert_close(SEEN["Asks", layer].hidden, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family, chunk", [("llama", None), ("qwen3", 7), ("qwen2", None)])
def test_the_output_projection_is_the_models_by_head(family, chunk):
    """Found by what it is given; the same in pieces."""
    engine(family, chunk).prefill(prompt(31, 2, seed=5), [Asks()])
    for layer, expected in enumerate(matrices(family)):
        assert torch.equal(SEEN["Asks", layer].output(), expected)


def test_notes_reach_the_plan_layer_by_layer():
    """One number per sample of each evicted layer, in order; a plan that is not handed them is refused."""
    host, ids = engine("llama"), prompt(30, 2, seed=4)
    prefill = host.prefill(ids, [Asks()])
    host.fork(prefill, [Cell("x", Asks(), 10)], 0)
    expected = [SEEN["Asks", layer].rows.query.mean((1, 2, 3)) for layer in prefill.shape.evicted]
    assert len(SEEN["notes"]) == 4 and all(map(torch.equal, SEEN["notes"], expected))

    class Wrong(Asks):
        def notes(self, seen):
            return seen.rows.query.mean((2, 3))

    with pytest.raises(MethodError, match=r"Wrong.notes .* wanted: floating numbers \[2\], one for each sample"):
        host.prefill(ids, [Wrong()])
