"""Why a model cannot be measured, where its configuration or its classes say so before anything runs.

>>> from transformers import MptConfig
>>> refusal(MptConfig())
'its attention has ALiBi, a bias by distance that the engine does not add'

What only a run can tell is said by `check`.
"""

import inspect
import sys
from typing import get_args

from torch import nn
from transformers import Cache, PreTrainedModel

from pvcbench.engine.layout import Layout, decoder_config, decoder_layers, decoder_of, unknown_kinds, unknown_sharing

KINDS = {  # what layers do that the engine cannot follow
    "indexed_attention": "an indexer of the model's own chooses which cached tokens each query sees",
    "minimax_m3_sparse": "an indexer of the model's own chooses which cached tokens each query sees",
    "compressed_sparse_attention": "the model compresses its cached tokens itself",
    "heavily_compressed_attention": "the model compresses its cached tokens itself",
    "reference_sliding_attention": "only generated tokens slide, and the prompt does not",
}


def refusal(subject) -> str | None:
    """The reason as a clause, or None; `subject` is a configuration or, which tells more, a model (on any device)."""
    config = decoder_config(subject.config if isinstance(subject, nn.Module) else subject)
    reason = _of_config(config)
    return _of_model(subject, config) if reason is None and isinstance(subject, nn.Module) else reason


def _of_config(config) -> str | None:
    """What the configuration says."""
    if getattr(config, "alibi", False) or getattr(getattr(config, "attn_config", None), "alibi", False):
        return "its attention has ALiBi, a bias by distance that the engine does not add"
    if not hasattr(config, "num_hidden_layers"):
        return "its configuration names no number of layers, so it is no decoder with a KV cache"
    kinds = unknown_kinds(config)
    if kinds:
        known = next((KINDS[kind] for kind in kinds if kind in KINDS), "the engine does not know them")
        return f"it has layers of kind {', '.join(kinds)}: {known}"
    if unknown_sharing(config):
        return "some of its layers read the keys and values of others in a way that the engine does not know"
    layout = Layout.of(config)
    return None if layout.numbers else "none of its layers holds keys and values, so there is no KV cache to evict"


def _of_model(model: nn.Module, config) -> str | None:
    """What the classes of the model say."""
    if "past_key_values" not in inspect.signature(type(decoder_of(model)).forward).parameters:
        return "its decoder takes no cache of keys and values (past_key_values), so there is none to evict from"
    if not (model._can_set_attn_implementation() or _can_switch(decoder_of(model))):
        beside = vars(sys.modules[type(model).__module__])
        alibi = not hasattr(config, "alibi") and any("alibi" in name for name in beside)
        what = "attention with ALiBi" if alibi else "attention"
        return f"it computes {what} in its own code, which cannot be replaced from outside"
    own = _cache_of_its_own(decoder_of(model))
    if own is not None:
        return f"it runs on a cache of its own class only ({own})"
    layout = Layout.of(config)
    if decoder_layers(model, layout) is None:
        return (
            f"its decoder has no list of the {layout.layers} layers that its configuration names: they attend several "
            "times or run several times for each token, and the engine tells them apart by that list"
        )
    return None


def _can_switch(decoder: nn.Module) -> bool:
    """Whether the attention of a decoder inside another model can be replaced, whatever the parts around it do."""
    return isinstance(decoder, PreTrainedModel) and decoder._can_set_attn_implementation()


def _cache_of_its_own(decoder: nn.Module) -> str | None:
    """The cache class that a decoder asks for, where that is one defined beside it."""
    asked = inspect.signature(type(decoder).forward).parameters.get("past_key_values")
    for kind in () if asked is None else (asked.annotation, *get_args(asked.annotation)):
        if inspect.isclass(kind) and issubclass(kind, Cache) and kind.__module__ == type(decoder).__module__:
            return kind.__name__
    return None
