"""A small package of kvpress' shape: its bases, presses of every kind, and a start that fails as old imports do."""

from pathlib import Path

BASES = """
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class BasePress:
    def post_init_from_model(self, model):
        pass

    def compress(self, module, hidden_states, keys, values, attentions, kwargs):
        raise NotImplementedError

    def forward_hook(self, module, input, kwargs, output):
        layer = kwargs["past_key_values"].layers[module.layer_idx]
        if int(kwargs["cache_position"][-1]) + 1 == kwargs["hidden_states"].shape[1]:
            shown = kwargs["hidden_states"], layer.keys, layer.values, output[1], kwargs
            layer.keys, layer.values = self.compress(module, *shown)
        return output

    @contextmanager
    def __call__(self, model):
        yield


@dataclass
class ScorerPress(BasePress):
    compression_ratio: float = 0.0

    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        raise NotImplementedError

    def compress(self, module, hidden_states, keys, values, attentions, kwargs):
        scores = self.score(module, hidden_states, keys, values, attentions, kwargs)
        kept = max(1, int(keys.shape[2] * (1 - self.compression_ratio)))
        index = scores.topk(kept, dim=-1).indices[..., None].expand(-1, -1, -1, keys.shape[-1])
        return keys.gather(2, index), values.gather(2, index)
"""
PRESSES = '''
from dataclasses import dataclass, field

import torch

from kvpress.presses.base_press import BasePress, ScorerPress


@dataclass
class QueryPress(ScorerPress):
    """Norms of queries before and of keys after rotary embedding; `sinks` first entries stay."""

    sinks: int = 0

    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        assert hidden_states.shape[1] > self.sinks, "the prompt is no longer than the sinks"
        cos, _ = kwargs["position_embeddings"]
        assert cos.shape[1] == keys.shape[2] and attentions is None
        later, _ = module.rotary_emb(values, torch.arange(3)[None])
        query = module.q_proj(hidden_states).unflatten(-1, (-1, module.head_dim)).transpose(1, 2)
        groups = module.config.num_attention_heads // keys.shape[1]
        query = query.norm(dim=-1).unflatten(1, (-1, groups)).mean(2) * later.abs().sum()
        scores = query * keys.norm(dim=-1) * (module.layer_idx + 1)
        scores[..., : self.sinks] = scores.max() + 1
        return scores


@dataclass
class DrawPress(ScorerPress):
    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        return torch.rand(keys.shape[:3])


@dataclass
class SeenPress(ScorerPress):
    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        assert attentions is not None, "needs eager attention"
        return attentions.sum(2).unflatten(1, (keys.shape[1], -1)).mean(2)


@dataclass
class MaskPress(BasePress):
    """Hides the entries with the lowest scores over all heads of a layer."""

    press: ScorerPress

    @property
    def compression_ratio(self):
        return self.press.compression_ratio

    @compression_ratio.setter
    def compression_ratio(self, value):
        self.press.compression_ratio = value

    def compress(self, module, hidden_states, keys, values, attentions, kwargs):
        scores = self.press.score(module, hidden_states, keys, values, attentions, kwargs)
        heads, tokens = scores.shape[1:]
        lowest = (-scores.flatten(1)).topk(heads * (tokens - int(tokens * (1 - self.compression_ratio)))).indices[0]
        module.masked_key_indices = (torch.zeros_like(lowest), lowest // tokens, lowest % tokens)
        return keys, values


@dataclass
class OddPress(BasePress):
    """Every entry at an odd position, whatever is asked for."""

    @property
    def compression_ratio(self):
        return 0.5

    def compress(self, module, hidden_states, keys, values, attentions, kwargs):
        return keys[:, :, 1::2].flip(2), values[:, :, 1::2].flip(2)


@dataclass
class TurnPress(ScorerPress):
    def compress(self, module, hidden_states, keys, values, attentions, kwargs):
        return -keys, values


@dataclass
class WritePress(ScorerPress):
    """Empties channels of keys in place, as presses of channels do."""

    def compress(self, module, hidden_states, keys, values, attentions, kwargs):
        keys[..., ::2] = 0
        return keys, values


@dataclass
class LoopPress(BasePress):
    def __call__(self, model):
        return model


@dataclass
class LoadPress(ScorerPress):
    factor: float = field(init=False, default=None)

    def post_init_from_model(self, model):
        self.factor = float(model.config.hidden_size)

    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        return self.factor * values.norm(dim=-1)
'''


def write(folder: Path, old: str = "", new: str = "") -> str:
    """Writes the package into a folder, with a text in its presses replaced; returns the folder."""
    presses = folder / "kvpress" / "presses"
    presses.mkdir(parents=True)
    (folder / "kvpress" / "__init__.py").write_text("from transformers.pipelines.base import GenericTensorOfOld\n")
    (presses / "__init__.py").write_text("")
    (presses / "base_press.py").write_text(BASES)
    (presses / "all_press.py").write_text(PRESSES.replace(old, new) if old else PRESSES)
    return str(folder)
