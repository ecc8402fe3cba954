"""The dense reference of any family: the unmodified model whose attention is plain softmax under any mask.

Float64 throughout. It knows nothing of caches, and layers by the order in which they attend; `exact` is a fixture for
all tests of a module, which takes transformers' own roundings to float32 out, so that what differs is an error.
"""

from functools import cache

import pytest
import torch
from transformers import AttentionInterface

import families
from families import built, hosted

CLOSE = 1e-12  # of the range of the logits


@pytest.fixture(autouse=True)
def exact(request):
    """Transformers' code of a family must be imported before its roundings can be taken out."""
    name = request.node.callspec.params.get("name") if hasattr(request.node, "callspec") else None
    if name is None:
        yield
        return
    dense(name), built(name)
    with families.unrounded():
        yield
    hosted(name).chunk = None


class Dense:
    """The unmodified model under masks by the engine's layers, [rows, kv_heads, tokens, tokens]; None: causal."""

    running = None

    def __init__(self, name: str):
        self.model, self.engine = families.build(name, torch.float64), hosted(name)
        self.model.set_attn_implementation("tests_families")
        layout = self.engine.layout
        self.order = [number for _, number in sorted({**layout.numbers, **layout.readers}.items())]

    def __call__(self, ids, masks=None):
        Dense.running, self.masks, self.calls = self, masks, 0
        return self.model(input_ids=ids, use_cache=False, logits_to_keep=ids.shape[1]).logits

    def attend(self, query, key, value, scale, cap, sinks):
        layer, self.calls = self.order[self.calls], self.calls + 1
        groups, tokens, window = query.shape[1] // key.shape[1], key.shape[2], self.engine.windows[layer]
        logits = query @ key.repeat_interleave(groups, 1).mT * (query.shape[-1] ** -0.5 if scale is None else scale)
        logits = logits if cap is None else cap * torch.tanh(logits / cap)
        allowed = self.allowed(layer, tokens, window).expand(len(query), key.shape[1], -1, -1)
        allowed = allowed.repeat_interleave(groups, 1)[:, :, tokens - query.shape[2] :]
        logits = logits.masked_fill(~allowed, float("-inf"))
        if sinks is not None:
            logits = torch.cat((logits, sinks.view(1, -1, 1, 1).expand(*logits.shape[:-1], 1)), -1)
        return logits.softmax(-1)[..., :tokens] @ value.repeat_interleave(groups, 1)

    def allowed(self, layer, tokens, window):
        rows, columns = torch.arange(tokens)[:, None], torch.arange(tokens)
        allowed = columns <= rows
        if window is not None:
            chunked = type(window) is not int
            allowed = allowed & (rows // window == columns // window if chunked else columns > rows - window)
        if self.masks is None:
            return allowed
        return allowed & (self.masks[layer] | torch.eye(tokens, dtype=torch.bool))


def _dense(module, query, key, value, attention_mask, scaling=None, softcap=None, s_aux=None, **kwargs):
    return Dense.running.attend(query, key, value, scaling, softcap, s_aux).transpose(1, 2), None


AttentionInterface.register("tests_families", _dense)


@cache
def dense(name: str) -> Dense:
    """The dense reference of a family."""
    return Dense(name)


def off(found, expected) -> float:
    """The largest difference, of the range of the expected."""
    return ((found - expected).abs().max() / (expected.max() - expected.min())).item()
