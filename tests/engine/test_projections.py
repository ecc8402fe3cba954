"""Output projections are found by what they do, whatever their name; where there is none, methods are refused."""

from functools import partial

import pytest
import torch
from torch import nn

from methods.critical_kv import CriticalKV
from methods.snapkv import SnapKV
from pvcbench.architectures import families
from pvcbench.engine.engine import Engine
from pvcbench.engine.projections import LATENT
from pvcbench.errors import UserError
from pvcbench.evaluation.cells import Point
from pvcbench.evaluation.preflight import prepare
from tiny import build, prompt

pytestmark = pytest.mark.usefixtures("inference")


class Adapted(nn.Module):
    """A linear layer with a second one beside it, as adapters are: its own weight is not what it computes."""

    def __init__(self, base):
        super().__init__()
        self.base, self.weight = base, base.weight
        self.more = nn.Linear(base.in_features, base.out_features, dtype=base.weight.dtype)

    def forward(self, given):
        return self.base(given) + self.more(given)


class Gated(nn.Module):
    """A linear layer whose input is gated first."""

    def __init__(self, base):
        super().__init__()
        self.base, self.weight = base, base.weight

    def forward(self, given):
        return self.base(given * given.sigmoid())


class Twice(nn.Module):
    """Two linear layers that take the same, one of them to gate the other."""

    def __init__(self, base):
        super().__init__()
        self.one, self.other = base, nn.Linear(base.in_features, base.out_features, dtype=base.weight.dtype)

    def forward(self, given):
        return self.one(given) * self.other(given)


class Early(nn.Dropout):
    """Passes on what it is given, as dropout before the projection does."""


def replaced(kind):
    """A tiny llama whose output projections are other modules."""
    model = build("llama")
    for layer in model.model.layers:
        layer.self_attn.o_proj = kind(layer.self_attn.o_proj)
    return model.eval()


def changed(kind):
    """A tiny llama whose attention modules compute otherwise, out of themselves and how they computed before."""
    model = build("llama")
    for layer in model.model.layers:
        layer.self_attn.forward = partial(kind, layer.self_attn, layer.self_attn.forward)
    return model


def gated_afterwards(module, before, hidden_states, **others):
    """Gates what was written."""
    output, weights = before(hidden_states=hidden_states, **others)
    return output * hidden_states.sigmoid(), weights


def gated_beside(module, before, hidden_states, **others):
    """Gates what was written by what the heads add up, of which a second layer makes the gate."""
    gates = []
    hook = module.o_proj.register_forward_pre_hook(lambda _, args: gates.append(module.q_proj(args[0])))
    try:
        output, weights = before(hidden_states=hidden_states, **others)
    finally:
        hook.remove()
    return output * gates[0], weights


def projections(model):
    """Those of a model, which it has back afterwards."""
    engine = Engine(model)
    try:
        return engine.projections(prompt(40))
    finally:
        engine.release()


@pytest.mark.parametrize("name, weight", [
    ("gpt2", lambda layer: layer.attn.c_proj.weight),  # stored the other way round
    ("gpt_neox", lambda layer: layer.attention.dense.weight.T),
    ("opt", lambda layer: layer.self_attn.out_proj.weight.T),
    ("phi3", lambda layer: layer.self_attn.o_proj.weight.T),
])  # fmt: skip
def test_it_is_found_by_what_it_does(name, weight):
    """Under any name, with or without an offset, and as a matrix of any orientation."""
    model = families.build(name, torch.float64)
    layers = next(part for part in model.modules() if isinstance(part, nn.ModuleList))
    found = projections(model)
    assert len(found) == len(layers)
    for layer, projection in zip(layers, found, strict=True):
        torch.testing.assert_close(projection.matrix().flatten(0, 1), weight(layer), rtol=1e-9, atol=1e-9)


def test_it_is_what_a_module_computes_not_its_weight():
    """Adapters count, and dropout before it is passed over."""
    model = replaced(Adapted)
    for layer, projection in zip(model.model.layers, projections(model), strict=True):
        both = layer.self_attn.o_proj
        torch.testing.assert_close(projection.matrix().flatten(0, 1), (both.base.weight + both.more.weight).T)
    model = replaced(lambda base: nn.Sequential(Early(), base))
    for layer, projection in zip(model.model.layers, projections(model), strict=True):
        torch.testing.assert_close(projection.matrix().flatten(0, 1), layer.self_attn.o_proj[1].weight.T)


@pytest.mark.parametrize("model, reason", [
    (lambda: replaced(Gated), "what layer 0 does with what its heads add up is not linear"),
    (lambda: replaced(Twice), "what layer 0 makes of what its heads add up is changed once more"),
    (lambda: changed(gated_beside), "several modules of layer 0 take what its heads add up"),
    (lambda: changed(gated_afterwards), "what layer 0 makes of what its heads add up is changed once more"),
    (lambda: families.build("qwen3_next"), "no matrix of its own takes what the heads of layer 0 add up as it is"),
    (lambda: families.build("deepseek_v3"), LATENT),
], ids=["gated module", "two", "gate beside", "gated output", "gated heads", "latents"])  # fmt: skip
def test_where_there_is_none_methods_are_refused_with_the_reason(model, reason):
    """Before anything is measured, and in one line; methods that do not ask for it run."""
    engine = Engine(model())
    try:
        for method, fits in ((SnapKV(8), True), (CriticalKV(SnapKV(8)), False)):
            points = [Point("x", method, "0.5", 0.5)]
            if fits:
                prepare(engine, points)
                continue
            with pytest.raises(UserError) as error:
                prepare(engine, points)
            assert f"cannot be told, since {reason}" in str(error.value) and "\n" not in str(error.value)
    finally:
        engine.release()
