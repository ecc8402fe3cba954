"""Presses that read the model before they run are set up once for each model, since some load files for that."""

from weakref import WeakKeyDictionary

from torch import nn

from methods.kvpress_compat import made


class Ready:
    """The presses that were set up, for as long as their model lives."""

    def __init__(self):
        self.known: WeakKeyDictionary[nn.Module, dict[tuple, object]] = WeakKeyDictionary()

    def press(self, name: str, options: tuple, model: nn.Module | None):
        """A press, new where it needs no model, and else the one that was set up for this model."""
        if model is None:
            return made.press(name, options)
        own = self.known.setdefault(model, {})
        if (name, options) not in own:
            press = made.press(name, options)
            press.post_init_from_model(model)
            own[name, options] = press
        return own[name, options]


READY = Ready()


def rotary_of(model: nn.Module) -> nn.Module | None:
    """The rotary embedding of a model's decoder, which kvpress gives every attention module."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    if hasattr(decoder, "rotary_emb"):
        return decoder.rotary_emb
    names = ((name.rpartition(".")[2], module) for name, module in decoder.named_modules())
    return next((module for name, module in names if name == "rotary_emb"), None)
