"""Eviction in every step, two hundred of them: what must survive does, and positions are still right at the end."""

import pytest
import torch

from beside_dense import followed
from methods.pvc import PvC
from pvcbench.engine.engine import Engine
from tiny import METHODS, build, engine, exact_rotary, prompt

pytestmark = pytest.mark.usefixtures("inference")
TOKENS, STEPS = 40, 200
HOLDING = [name for name, method in METHODS.items() if "hold" in method.decodes and not method.reference]


def test_the_methods_that_evict_while_decoding():
    """None of those that the papers define for decoding went missing from the list below."""
    assert set(HOLDING) >= {"h2o", "streaming_llm", "streaming_llm_original_positions", "tova", "keydiff", "pvc"}


@pytest.mark.parametrize("name", HOLDING)
@pytest.mark.sampled(5)
def test_two_hundred_steps(name):
    """Sinks survive, the window is contiguous, nothing is held twice, and logits are dense attention's to the end."""
    method, host = METHODS[name], engine("llama")
    exact = method.positions == "cache"
    if exact:  # rotations of a sink add up: float64 tables, or float32's error is all that is seen
        host = Engine(build("llama"))
        host.model.model.rotary_emb.forward = exact_rotary(host.model)
    ids, fed = prompt(TOKENS, 2, seed=3), prompt(STEPS, 2, seed=4)
    cells = list(followed("llama", ids, fed, method, [1] * STEPS, host, exact))
    [(cell, prefill, kept, logits, expected)] = [one for one in cells if one[0].holds]
    torch.testing.assert_close(logits, expected[:, TOKENS:], rtol=1e-9, atol=1e-9)  # float64, see test_engine.py
    first, last = cell.method.protects(cell.budget, prefill.shape)
    for step, layers in enumerate(kept):
        seen = TOKENS + step
        must = set(range(first)) | set(range(seen - last, seen))
        for layer in layers:
            for head in layer.flatten(0, 1).tolist():
                there = [position for position in head if position >= 0]
                assert len(there) == len(set(there)) and must <= set(there), (name, step)
                assert isinstance(cell.method, PvC) or len(there) == cell.budget
