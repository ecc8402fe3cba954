"""Tiny random models of every family and the method configurations of conf/method.

The dense reference beside them, and what decodes next to it, are those of `pvcbench.checks.reference`.
"""

import importlib
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from pvcbench.checks.reference import (
    Dense,
    Trace,
    cell_of,
    dense_masks,
    exact_norms,
    exact_rotary,
    fork,
    positions,
    ranks_of,
    teach,
    turn,
    widen,
)
from pvcbench.config.compose import complete
from pvcbench.engine.engine import Engine

__all__ = ["Trace", "cell_of", "dense_masks", "exact_rotary", "fork", "positions", "ranks_of", "teach", "turn"]

VOCABULARY, WINDOW = 151, 24
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
_MIXED = ["sliding_attention", "full_attention"] * 3
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "llama_deep": (LlamaForCausalLM, LlamaConfig, {"num_hidden_layers": 7, "num_key_value_heads": 1}),
    "llama_yarn": (LlamaForCausalLM, LlamaConfig, {"rope_parameters": _YARN, "max_position_embeddings": 256}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"num_key_value_heads": 4}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 12, "num_key_value_heads": 1}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": None}),
    "mistral_sliding": (MistralForCausalLM, MistralConfig, {"sliding_window": WINDOW}),
    "phi3": (
        Phi3ForCausalLM,
        Phi3Config,
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
    ),
    "gemma3": (
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        {
            "sliding_window": WINDOW,
            "layer_types": _MIXED,
            "num_hidden_layers": 6,
            "head_dim": 8,
            "query_pre_attn_scalar": 12,
            "tie_word_embeddings": False,
        },
    ),
}


def build(family: str, dtype: torch.dtype = torch.float64, exact: bool = True) -> nn.Module:
    """A model with the same random weights in every call; `exact` norms do not round to float32 in between."""
    kind, config, extra = FAMILIES[family]
    torch.manual_seed(sum(family.encode()))
    model = kind(config(**{**_COMMON, **extra})).to(dtype).eval()
    widen(model)
    if exact:
        exact_norms(model)
    return model


@cache
def unmodified(family: str, exact: bool = True) -> nn.Module:
    """The model as transformers runs it."""
    return build(family, exact=exact)


@cache
def engine(family: str, chunk: int | None = None) -> Engine:
    """The engine on a model of its own; layers that slide are evicted where all of them slide."""
    return Engine(build(family), chunk=chunk, evict_sliding=family == "mistral_sliding")


def prompt(tokens: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    """Random token ids."""
    generator = torch.Generator().manual_seed(1000 * seed + tokens)
    return torch.randint(1, VOCABULARY, (batch, tokens), generator=generator)


# ---------------------------------------------------------------------------------------------- the dense reference


@cache
def dense(family: str, exact_angles: bool = False) -> Dense:
    """The dense reference of a family."""
    return Dense(build(family), exact_angles)


# ---------------------------------------------------------------------------------------------- methods and cells


def _make(settings):
    if not isinstance(settings, dict) or "_target_" not in settings:
        return settings
    module, _, name = settings["_target_"].rpartition(".")
    arguments = {key: _make(value) for key, value in settings.items() if key != "_target_"}
    return getattr(importlib.import_module(module), name)(**arguments)


def shrunk(method, floor: int = 8, window: int = 4):
    """The method with its smallest context or window, if it has one, fit for tiny prompts."""
    names = {field.name for field in fields(method)}
    changes = {"min_context_length": floor} if "min_context_length" in names else {}
    changes |= {"window": window} if "window" in names else {}
    changes |= {"threshold": 0.0} if getattr(method, "threshold", None) is not None else {}
    changes |= {name: size for name, size in {"lag": 8, "recent": 6, "chunk": 16}.items() if name in names}
    changes |= {"base": shrunk(method.base, floor, window)} if "base" in names else {}
    return replace(method, **changes)


def configured():
    """Every method of conf/method that runs as it stands, by name, as Hydra composes it."""
    conf, names = Path(__file__).parents[2] / "conf", ",".join(complete("method"))
    with initialize_config_dir(str(conf), version_base="1.3"):
        nodes = OmegaConf.to_container(compose(overrides=[f"+method=[{names}]"]), resolve=True)["methods"]
    return {name: _make(node) for name, node in nodes.items()}


def kinds(methods):
    """One method of each kind: the first of those that differ in numbers alone, whose properties are the same."""
    found = {}
    for name, method in methods.items():
        values = {field.name: getattr(method, field.name) for field in fields(method)}
        words = tuple((key, type(value)) for key, value in values.items() if not isinstance(value, str | bool))
        choices = tuple((key, value) for key, value in values.items() if isinstance(value, str | bool))
        inner = type(values["base"]) if "base" in values else None
        found.setdefault((type(method), words, choices, inner), name)
    return {name: methods[name] for name in found.values()}


METHODS = {name: shrunk(method) for name, method in kinds(configured()).items() if not method.unnamed}


def original(method):
    """The method with its entries at their original positions."""
    return replace(method, positions="original") if method.positions == "cache" else method


# ---------------------------------------------------------------------------------------------- memory


class _Largest(TorchDispatchMode):
    """Notes the number of elements of the largest tensor any operation returns."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for part in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(part, torch.Tensor):
                self.elements = max(self.elements, part.untyped_storage().nbytes() // part.element_size())
        return out


def largest(run) -> int:
    """Elements of the largest tensor that a call forms."""
    with _Largest() as mode:
        run()
    return mode.elements
