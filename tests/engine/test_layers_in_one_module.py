"""Layers that lie in one module of the decoder, which attends several times: found by the numbers of its attentions."""

from dataclasses import replace

import pytest
import torch

import families
from methods.expected_attention import ExpectedAttention
from methods.streaming_llm import StreamingLLM
from pvcbench.architectures import trial
from pvcbench.engine.engine import Engine
from pvcbench.engine.evict import Cell
from pvcbench.engine.layout import Layout, decoder_layers
from pvcbench.engine.model_check import check
from pvcbench.errors import UserError

NAME, TOKENS = "longcat_flash", 60
pytestmark = pytest.mark.usefixtures("inference")


@pytest.fixture
def engine():
    """On two modules of two layers each, in float64."""
    made = Engine(families.build(NAME, torch.float64))
    with families.unrounded():
        yield made


@pytest.mark.parametrize("modules", [1, 2, 3])
def test_each_layer_is_found_in_its_module(modules, monkeypatch):
    """Of one module too, inside which lists of two parts stand, as many as there are layers."""
    monkeypatch.setitem(families.RECIPES, NAME, families.RECIPES[NAME] | {"num_layers": modules})
    model = families.build(NAME, torch.float64)
    with families.unrounded():
        assert trial.differences(model)["error"] < 1e-12  # of the range of the logits: float64 sums in another order
        engine = Engine(model)
        check(engine, rotates=True, queries=True)
    assert engine.layout.together == 2 and len(engine.windows) == 2 * modules
    assert [[one.layer_idx for one in own] for own in engine.attentions] == [[place] for place in range(2 * modules)]


def test_every_layer_of_a_module_has_its_rotary_tables_and_its_own_queries(engine):
    """Turned by the tables, the queries that a method is shown are those that the layer attends with."""
    shown = {}

    class Watching(ExpectedAttention):
        def scores(self, seen):
            shown[seen.layer] = seen.queries
            return super().scores(seen)

    prefill = engine.prefill(families.prompt(TOKENS), [Watching()], capture=TOKENS)
    turns = engine.turns(families.prompt(TOKENS))
    assert sorted(shown) == [0, 1, 2, 3]
    for layer, plain in shown.items():
        cos, sin = (part[:, None] for part in prefill.rotary[layer])
        torch.testing.assert_close(turns[layer].queries(plain, cos, sin), prefill.queries[layer], rtol=0, atol=1e-10)


def test_a_stream_at_cache_positions_equals_steps(engine):
    ids, cell = families.prompt(TOKENS, 2), Cell("b", StreamingLLM(sinks=3), 12, hold=True)
    for every in (1, 5):
        (found, mine), (expected, theirs) = (engine.stream(ids, cell, every, scan=scan) for scan in (True, False))
        torch.testing.assert_close(found.logprobs, expected.logprobs, rtol=0, atol=1e-10)
        for one, other in zip(mine.layers, theirs.layers, strict=True):
            assert torch.equal(one.positions.sort(-1).values[..., -12:], other.positions.sort(-1).values[..., -12:])


def test_layers_are_not_guessed_where_the_numbers_do_not_say_them():
    """Attentions in another order, not equally often in each module, or beside layers that hold no entries."""
    model = families.build(NAME)
    layout, modules = Layout.of(model.config), model.model.layers
    assert decoder_layers(model, layout) is modules
    assert decoder_layers(model, replace(layout, numbers={0: 0, 1: 1, 3: 2})) is None
    first, second = (module.self_attn[0] for module in modules)
    first.layer_idx, second.layer_idx = 2, 0
    with pytest.raises(UserError, match="attend several times"):
        Engine(model)
    first.layer_idx, second.layer_idx = 0, 2
    modules[1].self_attn.append(modules[0].self_attn.pop(1))
    assert [one.layer_idx for one in modules[1].self_attn] == [2, 3, 1]
    modules[1].self_attn = torch.nn.ModuleList([modules[1].self_attn[number] for number in (2, 0, 1)])
    assert decoder_layers(model, layout) is None
