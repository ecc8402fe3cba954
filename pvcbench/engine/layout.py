"""Layers by kind: which keep a KV cache, a recurrent state or both, which slide, which read another layer's cache.

A layer that reads the entries of another stores none and evicts none: it attends to what its source has kept. Methods
see the source's own queries alone. (Of a prompt transformers gives some readers the last token only, so what readers
look at would depend on how a prompt is cut into calls.)
"""

import copy
from dataclasses import dataclass, field
from functools import cached_property

from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs

from pvcbench.engine.attention import Chunked

ATTENDS = {"full_attention", "sliding_attention", "chunked_attention", "hybrid", "hybrid_sliding"}
CARRIES = {"linear_attention", "conv", "hybrid", "hybrid_sliding"}
NEITHER = {"dummy"}


@dataclass(frozen=True)
class Layout:
    """The layers of a decoder; the engine numbers those that hold entries, from 0."""

    numbers: dict[int, int]  # the engine's number of each decoder layer that holds entries
    windows: list[int | None]  # by that number; None where a layer attends to everything
    states: dict[int, int]  # how many states each decoder layer carries, where it carries any
    layers: int  # of the decoder
    latent: bool = False  # whether entries are latents, which lie in the keys and once more, in part, in the values
    readers: dict[int, int] = field(default_factory=dict)  # decoder layers that attend to those of another: its number
    together: int = 1  # layers that lie in each module of the decoder, which attends as many times

    @classmethod
    def of(cls, config) -> "Layout":
        """By the configuration alone, as transformers makes its own caches; of kinds that the engine knows."""
        kinds, options = get_layer_types_and_kwargs(config)
        holding = [layer for layer, kind in enumerate(kinds) if kind in ATTENDS]
        states = {layer: options[layer]["number_of_states"] for layer, kind in enumerate(kinds) if kind in CARRIES}
        windows = [options[layer].get("sliding_window") for layer in holding]
        windows = [
            Chunked(width) if kinds[layer] == "chunked_attention" else width
            for layer, width in zip(holding, windows, strict=True)
        ]
        numbers = {layer: number for number, layer in enumerate(holding)}
        latent = bool(getattr(config, "kv_lora_rank", None))
        return cls(numbers, windows, states, len(kinds), latent, readers_of(config, numbers))

    @property
    def places(self) -> list[int]:
        """Where among the decoder's layers each layer stands that holds entries."""
        return list(self.numbers)

    def beside(self, layer: int) -> range:
        """The layers that lie in one module of the decoder, by the number of the first of them."""
        return range(layer, layer + self.together)

    @cached_property
    def last_readers(self) -> dict[int, int]:
        """By the number of each layer that others read: the decoder layer that is the last to do so."""
        return {number: layer for layer, number in sorted(self.readers.items())}


def sharing(config) -> list[str | None]:
    """By layer: "reuse" where it reads another's entries, "store" where others read its own; empty: none shares."""
    return list(getattr(config, "kv_sharing_modes", None) or ())


def readers_of(config, numbers: dict[int, int]) -> dict[int, int]:
    """The decoder layers that read another's entries, and the number of that one: the one of their kind that stores."""
    modes, kinds = sharing(config), getattr(config, "layer_types", None)
    stores = {kinds[layer]: numbers[layer] for layer, mode in enumerate(modes) if mode == "store"}
    return {layer: stores[kinds[layer]] for layer, mode in enumerate(modes) if mode == "reuse"}


def unknown_sharing(config) -> bool:
    """Whether layers share entries in a way that the engine does not know."""
    modes = sharing(config)
    if set(modes) <= {None, "store"}:
        return False
    kinds = getattr(config, "layer_types", None)
    if kinds is None or set(modes) - {None, "store", "reuse"} or getattr(config, "kv_lora_rank", None):
        return True
    stored = [kind for kind, mode in zip(kinds, modes, strict=True) if mode == "store"]
    read = {kind for kind, mode in zip(kinds, modes, strict=True) if mode == "reuse"}
    return not read <= set(stored) or len(set(stored)) < len(stored)


def unknown_kinds(config) -> list[str]:
    """The kinds of a configuration's layers that the engine does not know."""
    kinds, _ = get_layer_types_and_kwargs(config)
    return sorted(set(kinds) - ATTENDS - CARRIES - NEITHER)


def decoder_config(config):
    """The configuration of the decoder, whose number of layers is its own where an encoder's stands beside it."""
    text = config.get_text_config(decoder=True)
    own = getattr(text, "decoder_layers", None)
    if own is None or own == getattr(text, "num_hidden_layers", own):
        return text
    text = copy.copy(text)
    text.num_hidden_layers = own
    return text


def decoder_of(model: nn.Module) -> nn.Module:
    """The model without its head; some models call the head's last layer their decoder."""
    decoder = model.get_decoder()
    return decoder if isinstance(decoder, PreTrainedModel) else model.base_model


def first_position(model: nn.Module) -> tuple[int, int | None]:
    """The position of a sequence's first token, and the token that has no position of its own: a padding token.

    Embeddings that count positions by the tokens themselves begin after the padding's own.
    """
    for module in model.modules():
        if hasattr(module, "create_position_ids_from_input_ids"):
            return module.padding_idx + 1, module.padding_idx
    return 0, None


def decoder_layers(model: nn.Module, layout: Layout) -> nn.ModuleList | None:
    """The list of the decoder's modules, whatever it is called there; None where no list holds the layers.

    Each module is a layer, or each holds several.
    """
    lists = [module for module in decoder_of(model).modules() if isinstance(module, nn.ModuleList)]
    return next((found for found in lists if len(found) == layout.layers or hold_several(found, layout)), None)


def hold_several(modules: nn.ModuleList, layout: Layout) -> bool:
    """Whether the modules of a list attend equally often each, and together once for every layer, in their order."""
    numbers = [[attention.layer_idx for attention in attentions(module)] for module in modules]
    if len({len(own) for own in numbers}) != 1 or len(layout.numbers) < layout.layers:
        return False
    return [number for own in numbers for number in own] == list(range(layout.layers))


def attentions(layer: nn.Module) -> list[nn.Module]:
    """The attention modules inside a module of the decoder: those that know the number of their layer."""
    known = [module for module in layer.modules() if getattr(module, "layer_idx", None) is not None]
    return [module for module in known if module is not layer and is_attention(module)]


def is_attention(module: nn.Module) -> bool:
    """Whether a module attends: by what it is called, or because it expands latents into keys and values."""
    return "attention" in type(module).__name__.lower() or hasattr(module, "expand_kv")


def attentions_by_layer(modules: nn.ModuleList, layout: Layout) -> list[list[nn.Module]]:
    """The attention modules of each of the decoder's layers."""
    found = [attentions(module) for module in modules]
    return found if layout.together == 1 else [[attention] for own in found for attention in own]
