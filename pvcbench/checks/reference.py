"""Dense attention under any mask: what a cache with evicted entries must equal.

The reference is the unmodified model with plain softmax attention; it knows nothing of caches, blocks or positions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AttentionInterface

from pvcbench.engine.decode import Decoder
from pvcbench.engine.engine import Engine
from pvcbench.engine.evict import Cell, Group
from pvcbench.engine.prefill import Prefill
from pvcbench.policy import Method, OutOfReach

NAME = "pvcbench_dense"


class Dense:
    """A model under any mask: `masks(layer)` says which key each row of each KV head sees.

    `watch(layer, attention)` is shown the attention weights as the layers run, so that it may change what `masks`
    says of a deeper layer. With `ranks(layer)`, a pair (of queries, of keys as each row sees them), queries and keys
    are rotated to those places instead of their positions.
    """

    def __init__(self, model: nn.Module, exact_angles: bool = False):
        self.model = model
        self.model.set_attn_implementation(NAME)
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


def exact_rotary(model: nn.Module) -> Callable:
    """A rotary forward with cos and sin in float64."""
    rotary = model.model.rotary_emb

    def forward(x, position_ids, layer_type=None):
        prefix = "" if layer_type is None else f"{layer_type}_"
        angles = position_ids[..., None].double() * getattr(rotary, f"{prefix}inv_freq").double()
        angles, scaling = torch.cat((angles, angles), -1), getattr(rotary, f"{prefix}attention_scaling")
        return angles.cos() * scaling, angles.sin() * scaling

    return forward


def exact_norms(model: nn.Module) -> None:
    """Replaces the norms, which round to float32 and so would blow 1e-16 up to 1e-7, by the same ones in float64."""
    for parent in list(model.modules()):
        for name, norm in parent.named_children():
            if type(norm).__name__.endswith("RMSNorm"):
                offset = 1.0 if type(norm).__name__.startswith("Gemma") else 0.0
                eps = getattr(norm, "eps", None) or norm.variance_epsilon
                same = nn.RMSNorm(len(norm.weight), eps=eps, dtype=norm.weight.dtype)
                same.weight.data.copy_(norm.weight.data + offset)
                setattr(parent, name, same)


def widen(model: nn.Module) -> None:
    """Redraws the weights, wide enough for attention to be uneven and tokens to vary."""
    gemma = type(model).__name__.startswith("Gemma")
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            nn.init.normal_(weight, std=0.25)
        elif name.endswith("bias"):
            nn.init.normal_(weight, std=0.3)
        else:
            nn.init.normal_(weight, mean=0.0 if gemma else 1.0, std=0.2)


def _dense(module, query, key, value, attention_mask, scaling=None, dense=None, sliding_window=None, **kwargs):
    return dense.attend(module, query, key, value, scaling, sliding_window).transpose(1, 2), None


AttentionInterface.register(NAME, _dense)


# ---------------------------------------------------------------------------------------------- decoding beside it


@dataclass
class Trace:
    """A teacher-forced decoding: logits after each step and the kept positions before it, per group."""

    logits: list[torch.Tensor]
    kept: list[list[tuple[int, int, list[torch.Tensor]]]]


def positions(group: Group) -> list[torch.Tensor]:
    """The positions that each layer of a group holds now, by slot."""
    return [entries.positions[:, :, : entries.filled].clone() for entries in group.layers]


def teach(host: Engine, groups: Sequence[Group], fed: torch.Tensor, chunks: Sequence[int]) -> Trace:
    """Feeds given tokens, [rows, tokens], in chunks of these sizes."""
    decoder, trace, start = Decoder(host.call, groups, host.backend), Trace([], [[] for _ in groups]), 0
    for size in chunks:
        for group, kept in zip(groups, trace.kept, strict=True):
            kept.append((decoder.cache.seen, size, positions(group)))
        trace.logits.append(decoder.step(fed[:, start : start + size]))
        start += size
    return trace


def dense_masks(groups_kept: Sequence[tuple], prefill: Prefill, tokens: int) -> Callable[[int], torch.Tensor]:
    """The masks that equal a decoding: `groups_kept` is [(first row, rows, kept positions per layer)] of each step."""
    batch = len(prefill.layers[0].keys)
    start, masks = prefill.shape.tokens, []
    for layer in range(prefill.shape.layers):
        heads = prefill.layers[layer].keys.shape[1]
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


def ranks_of(masks: Callable[[int], torch.Tensor], tokens: int) -> Callable:
    """Places inside the cache: of each query among what it sees, and of each key it sees."""

    def ranks(layer):
        visible = masks(layer) & torch.ones(tokens, tokens, dtype=torch.bool).tril()
        places = (visible.cumsum(-1) - 1).clamp(min=0)
        return places.diagonal(dim1=-2, dim2=-1), places

    return ranks


def cell_of(method: Method, shape, hold=False, shares=(0.3, 0.5, 0.7, 0.85, 0.9)) -> Cell:
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
    raise OutOfReach(f"{type(method).__name__} reaches none of {shares} of {shape.tokens} tokens")


def fork(host: Engine, ids: torch.Tensor, cells: Sequence[Cell], room: int, draws=None) -> list[Group]:
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
