"""Tiny random models of every family, the method configurations of conf/method, and an independent dense reference.

The dense reference is the unmodified model with plain softmax attention under any mask: what a cache with evicted
entries must equal. It knows nothing of caches, blocks or positions.
"""

import importlib
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AttentionInterface,
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

from pvcbench.engine.decode import Decoder
from pvcbench.engine.engine import Engine
from pvcbench.engine.evict import Cell
from pvcbench.policy import OutOfReach

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
    for name, weight in model.named_parameters():  # wide enough for attention to be uneven and tokens to vary
        gemma = family.startswith("gemma")
        if weight.dim() == 2:
            nn.init.normal_(weight, std=0.25)
        elif name.endswith("bias"):
            nn.init.normal_(weight, std=0.3)
        else:
            nn.init.normal_(weight, mean=0.0 if gemma else 1.0, std=0.2)
    if exact:
        _exact_norms(model)
    return model


def _exact_norms(model):
    """Replaces the norms, which round to float32 and so would blow 1e-16 up to 1e-7, by the same ones in float64."""
    for parent in list(model.modules()):
        for name, norm in parent.named_children():
            if type(norm).__name__.endswith("RMSNorm"):
                offset = 1.0 if type(norm).__name__.startswith("Gemma") else 0.0
                eps = getattr(norm, "eps", None) or norm.variance_epsilon
                same = nn.RMSNorm(len(norm.weight), eps=eps, dtype=norm.weight.dtype)
                same.weight.data.copy_(norm.weight.data + offset)
                setattr(parent, name, same)


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


class Dense:
    """The unmodified model under any mask: `masks(layer)` says which key each row of each KV head sees.

    `watch(layer, attention)` is shown the attention weights as the layers run, so that it may change what `masks`
    says of a deeper layer. With `ranks(layer)`, a pair (of queries, of keys as each row sees them), queries and keys
    are rotated to those places instead of their positions.
    """

    def __init__(self, family: str, exact_angles: bool = False):
        self.model = build(family)
        self.model.set_attn_implementation("tests_dense")
        self.rotary = self.model.model.rotary_emb
        self.angles = self.rotary.forward
        if exact_angles:
            self.angles = exact_rotary(self.model)
        self.masks = self.watch = self.ranks = None

    def __call__(self, ids, masks=None, watch=None, ranks=None):
        """Logits of every token."""
        self.masks, self.watch, self.ranks = masks, watch, ranks
        self.rotary.forward = self.angles if ranks is None else self._unrotated
        return self.model(input_ids=ids, use_cache=False, dense=self).logits

    def _unrotated(self, *args, **kwargs):
        cos, sin = self.angles(*args, **kwargs)
        return torch.ones_like(cos), torch.zeros_like(sin)

    def attend(self, module, query, key, value, scale, window):
        """Plain softmax attention of all rows."""
        layer, groups, tokens = module.layer_idx, query.shape[1] // key.shape[1], query.shape[2]
        rows, columns = torch.arange(tokens)[:, None], torch.arange(tokens)
        allowed = (columns <= rows) if window is None else (columns <= rows) & (columns > rows - window)
        allowed = allowed.expand(len(query), key.shape[1], -1, -1)
        if self.masks is not None:
            allowed = allowed & (self.masks(layer) | torch.eye(tokens, dtype=torch.bool))
        if self.ranks is not None:
            logits = self._rotated_logits(module, query, key)
        else:
            logits = query @ key.repeat_interleave(groups, 1).mT
        logits = (logits * scale).masked_fill(~allowed.repeat_interleave(groups, 1), float("-inf"))
        weights = logits.softmax(-1)
        if self.watch is not None:
            self.watch(layer, weights)
        return weights @ value.repeat_interleave(groups, 1)

    def _rotated_logits(self, module, query, key):
        own, others = self.ranks(module.layer_idx)  # [batch, kv_heads, rows] and [batch, kv_heads, rows, keys]
        kinds = getattr(self.model.config, "layer_types", None)
        kind = [kinds[module.layer_idx]] if type(self.rotary).__name__.startswith("Gemma") else []
        places = torch.arange(int(max(own.max(), others.max())) + 1)[None]
        cos, sin = (table[0].to(query.dtype) for table in self.angles(query, places, *kind))
        groups = query.shape[1] // key.shape[1]
        turned = turn(query, cos[own].repeat_interleave(groups, 1), sin[own].repeat_interleave(groups, 1))
        keys = turn(key[:, :, None].expand(*others.shape, -1), cos[others], sin[others])
        return torch.einsum("bhqd,bhqkd->bhqk", turned, keys.repeat_interleave(groups, 1))


def turn(vectors, cos, sin):
    """Rotary embedding of the first dimensions, the others left as they are."""
    width = cos.shape[-1]
    first, second = vectors[..., :width].chunk(2, -1)
    turned = vectors[..., :width] * cos + torch.cat((-second, first), -1) * sin
    return torch.cat((turned, vectors[..., width:]), -1)


def exact_rotary(model):
    """A rotary forward with cos and sin in float64."""
    rotary = model.model.rotary_emb

    def forward(x, position_ids, layer_type=None):
        prefix = "" if layer_type is None else f"{layer_type}_"
        angles = position_ids[..., None].double() * getattr(rotary, f"{prefix}inv_freq").double()
        angles, scaling = torch.cat((angles, angles), -1), getattr(rotary, f"{prefix}attention_scaling")
        return angles.cos() * scaling, angles.sin() * scaling

    return forward


def _dense(module, query, key, value, attention_mask, scaling=None, dense=None, sliding_window=None, **kwargs):
    return dense.attend(module, query, key, value, scaling, sliding_window).transpose(1, 2), None


AttentionInterface.register("tests_dense", _dense)


@cache
def dense(family: str, exact_angles: bool = False) -> Dense:
    """The dense reference of a family."""
    return Dense(family, exact_angles)


def dense_masks(groups_kept, prefill, tokens):
    """The masks that equal a decoding: `groups_kept` is [(first row, rows, kept positions per layer)] of each step."""
    batch, heads = prefill.layers[0].keys.shape[:2]
    start, masks = prefill.shape.tokens, []
    for layer in range(prefill.shape.layers):
        mask = torch.zeros(batch, heads, tokens, tokens, dtype=torch.bool)
        alive = torch.zeros(batch, tokens, dtype=torch.bool).scatter_(1, prefill.layers[layer].positions, True)
        mask[:, :, :start] = alive[:, None, None]
        for first, rows, kept in groups_kept:
            seen = torch.zeros(batch, heads, tokens + 1, dtype=torch.bool)
            seen.scatter_(2, kept[layer].masked_fill(kept[layer] < 0, tokens), True)  # the last column: empty slots
            seen[:, :, first : first + rows] = True
            mask[:, :, first : first + rows] = seen[:, :, None, :tokens]
        masks.append(mask)
    return masks.__getitem__


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
    """Every method of conf/method by name, as Hydra composes it."""
    conf = Path(__file__).parents[2] / "conf"
    names = ",".join(sorted(path.stem for path in (conf / "method").glob("*.yaml")))
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


METHODS = {name: shrunk(method) for name, method in kinds(configured()).items()}


def original(method):
    """The method with its entries at their original positions."""
    return replace(method, positions="original") if method.positions == "cache" else method


def cell_of(method, shape, hold=False, shares=(0.3, 0.5, 0.7, 0.85, 0.9)) -> Cell:
    """A cell at the first budget that the method reaches; it holds if asked and if the method can."""
    hold = hold and "hold" in method.decodes
    if method.own_budget is not None:
        return Cell(method.own_budget, method.resolve(None, shape), None, hold, everything=method.reference)
    for share in shares:
        budget = int(share * shape.tokens)
        try:
            return Cell(str(budget), method.resolve(budget, shape), budget, hold)
        except OutOfReach:
            continue
    raise AssertionError(f"{method} reaches none of {shares} of {shape.tokens} tokens")


def fork(host: Engine, ids, cells, room: int, draws=None):
    """Prefills what the cells need and forks: the groups of all cells."""
    plain = [cell for cell in cells if cell.pruner is None]
    groups = []
    if plain:
        prefill = host.prefill(ids, [cell.method for cell in plain if not cell.everything], draws=draws)
        groups += host.fork(prefill, plain, room)
    for cell in cells:
        if cell.pruner is not None:
            groups += host.fork(host.prefill(ids, pruner=cell.pruner, draws=draws), [cell], room)
    return groups


@dataclass
class Trace:
    """A teacher-forced decoding: logits after each step and the kept positions before it, per group."""

    logits: list[torch.Tensor]
    kept: list[list[tuple[int, int, list[torch.Tensor]]]]


def positions(group):
    """The positions that each layer of a group holds now, by slot."""
    return [entries.positions[:, :, : entries.filled].clone() for entries in group.layers]


def teach(host: Engine, groups, fed, chunks) -> Trace:
    """Feeds given tokens, [rows, tokens], in chunks of these sizes."""
    decoder, trace, start = Decoder(host.call, groups, host.backend), Trace([], [[] for _ in groups]), 0
    for size in chunks:
        for group, kept in zip(groups, trace.kept, strict=True):
            kept.append((decoder.cache.seen, size, positions(group)))
        trace.logits.append(decoder.step(fed[:, start : start + size]))
        start += size
    return trace


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
