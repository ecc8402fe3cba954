"""Which decoder layers hold entries, which carry a state instead or beside them, and which slide."""

import copy
from dataclasses import dataclass

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
        return cls(numbers, windows, states, len(kinds), bool(getattr(config, "kv_lora_rank", None)))

    @property
    def places(self) -> list[int]:
        """Where among the decoder's layers each layer stands that holds entries."""
        return list(self.numbers)


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


def decoder_layers(model: nn.Module, count: int) -> nn.ModuleList | None:
    """The list of the decoder's layers, whatever it is called there; None where no list is so long."""
    lists = [module for module in decoder_of(model).modules() if isinstance(module, nn.ModuleList)]
    return next((found for found in lists if len(found) == count), None)


def attentions(layer: nn.Module) -> list[nn.Module]:
    """The attention modules of a decoder layer: those that know its number."""
    known = [module for module in layer.modules() if getattr(module, "layer_idx", None) is not None]
    return [module for module in known if module is not layer and "attention" in type(module).__name__.lower()]
