"""Hands a press one layer of one sample, as kvpress' own hooks do after a prefill, and reads its scores or kept set."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pvcbench.policy import UserError

WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Layer:
    """What a press is shown of one layer: the attention module, what went in, and what the cache has of it."""

    module: nn.Module
    hidden: Float[Tensor, "1 tokens width"]
    keys: Float[Tensor, "1 kv_heads tokens dim"]
    values: Float[Tensor, "1 kv_heads tokens value_dim"]
    tables: tuple[Tensor, Tensor] | None
    rotary: nn.Module | None  # the decoder's
    attentions: Float[Tensor, "1 heads tokens tokens"] | None = None
    seed: int = 0  # of what the press draws

    def arguments(self) -> dict:
        """The keyword arguments of the module's call, with a cache that holds this layer alone."""
        place = torch.arange(self.hidden.shape[1], device=self.hidden.device)
        return {
            "hidden_states": self.hidden,
            "past_key_values": Cache(self),
            "cache_position": place,
            "position_ids": place[None],
            "position_embeddings": self.tables,
            "attention_mask": None,
        }


class Cache:
    """As much of transformers' cache as a press looks at; some write into it, so it holds copies."""

    def __init__(self, layer: Layer):
        self.layers = {layer.module.layer_idx: SimpleNamespace(keys=layer.keys.clone(), values=layer.values.clone())}
        self.tokens = layer.keys.shape[2]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.tokens


@contextmanager
def lent(layer: Layer) -> Iterator[None]:
    """The module with what kvpress gives it, the rotary embedding and a place for masked entries; afterwards as before.

    What the press draws is a function of the layer's seed, and nobody else's random numbers change.
    """
    own = vars(layer.module)
    before = dict(own)
    if not hasattr(layer.module, "rotary_emb"):
        own["rotary_emb"] = layer.rotary
    own["masked_key_indices"] = None
    try:
        with torch.random.fork_rng([layer.keys.device] if layer.keys.is_cuda else []):
            torch.manual_seed(layer.seed)
            yield
    finally:
        own.clear()
        own.update(before)


def scores(press, layer: Layer) -> Float[Tensor, "1 kv_heads tokens"]:
    """The scores of a press."""
    with lent(layer):
        arguments = layer.arguments()
        own = arguments["past_key_values"].layers[layer.module.layer_idx]
        found = press.score(layer.module, layer.hidden, own.keys, own.values, layer.attentions, arguments)
    kinds = (torch.float32, torch.float64, layer.keys.dtype)
    return found if found.dtype in kinds else found.float()


def kept(press, layer: Layer) -> Bool[Tensor, "1 kv_heads tokens"]:
    """What a press keeps when its own hook runs; raises UserError where it does more to entries than to drop them."""
    arguments = layer.arguments()
    with lent(layer):
        press.forward_hook(layer.module, (), arguments, (layer.hidden, layer.attentions))
        masked = layer.module.masked_key_indices
    left = arguments["past_key_values"].layers[layer.module.layer_idx]
    index = found_again(layer, left.keys, left.values)
    if index is None:
        raise UserError(
            f"{type(press).__name__} changes keys or values, which is more than to choose entries: only presses that "
            "score or drop entries can be measured here"
        )
    flags = torch.zeros(layer.keys.shape[:3], dtype=torch.bool, device=layer.keys.device).scatter_(2, index, True)
    if masked is not None:  # kvpress hides these in attention and leaves them in its cache
        flags[tuple(part.to(flags.device) for part in masked)] = False
    return flags


def found_again(layer: Layer, keys: Tensor, values: Tensor) -> Int[Tensor, "1 kv_heads kept"] | None:
    """Where the entries that are left stood before; None where one of them did not."""
    before = layer.keys.shape, layer.values.shape
    after = keys.shape, values.shape
    if any(old[:2] + old[3:] != new[:2] + new[3:] for old, new in zip(before, after, strict=True)):
        return None
    if keys.shape[2] != values.shape[2]:
        return None
    known, order = prints(layer.keys, layer.values).sort(dim=-1, stable=True)
    sought, turn = prints(keys, values).sort(dim=-1, stable=True)
    number = torch.arange(sought.shape[-1], device=sought.device) - torch.searchsorted(sought, sought)  # among equals
    place = (torch.searchsorted(known, sought) + number).clamp(max=known.shape[-1] - 1)
    index = torch.empty_like(turn).scatter_(-1, turn, order.gather(-1, place))
    for old, new in ((layer.keys, keys), (layer.values, values)):
        if not torch.equal(old.gather(2, index[..., None].expand(-1, -1, -1, old.shape[-1])), new):
            return None
    return index


def prints(keys: Tensor, values: Tensor) -> Int[Tensor, "1 kv_heads entries"]:
    """A number for each entry, the same for the same bits; whole numbers, whose sums are exact in any order."""
    words = [part.contiguous().view(WORDS[part.element_size()]).long() for part in (keys, values)]
    whole = torch.cat(words, -1)
    draw = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**62), 2**62, (whole.shape[-1],), generator=draw).to(whole.device)
    return (whole * (2 * factors + 1)).sum(-1)
