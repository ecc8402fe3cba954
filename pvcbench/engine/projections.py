"""Finds each layer's output projection: the matrix that takes what its heads add up and writes it into hidden states.

It is found by what it does: on a short prompt, the module of the layer that is given exactly what the heads added up,
side by side, and answers linearly. No model is asked for its name, and where something comes in between (a gate, a
norm) there is no such module.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

TOKENS = 28
CLOSE = {torch.float64: 1e-6, torch.float32: 1e-3}  # of the largest number; of sixteen bits and fewer:
COARSE = 0.05
LATENT = "the entries of this model are latents, which every query head expands for itself"
NONE = "no matrix of its own takes what the heads of layer {} add up as it is"
CURVED = "what layer {} does with what its heads add up is not linear"


@dataclass(frozen=True)
class Projection:
    """The output projection of one layer, whose input is what all heads add up, side by side."""

    module: nn.Module
    heads: int
    width: int  # of the input
    like: Tensor  # a number of the kind that the module takes, on the device where it takes it

    @property
    def plain(self) -> bool:
        """Whether the weights can be read off: nothing was put around the layer that makes another matrix of them."""
        module = self.module
        changed = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
        changed = changed or "parametrizations" in module._modules
        return type(module) is nn.Linear and not changed and not module.weight.is_meta

    def matrix(self) -> Float[Tensor, "heads dim hidden"]:
        """Each query head's part: a value times it is what the head writes where it attends to that entry alone."""
        if self.plain:
            return self.module.weight.T.unflatten(0, (self.heads, -1))
        with torch.inference_mode():
            ones = torch.eye(self.width, dtype=self.like.dtype, device=self.like.device)[None]
            written = self.module(ones) - self.module(torch.zeros_like(ones[:, :1]))
        return written[0].unflatten(0, (self.heads, -1))

    def linear(self, given: Float[Tensor, "*rows width"]) -> bool:
        """Whether the module's answer to what it was given is that of its matrix, and of an offset."""
        answer, nothing = self.module(given), self.module(torch.zeros_like(given))
        if not (isinstance(answer, Tensor) and answer.shape[:-1] == given.shape[:-1]):
            return False
        off = (given @ self.matrix().flatten(0, 1) + nothing - answer).abs().max()
        return bool(off <= CLOSE.get(answer.dtype, COARSE) * answer.abs().max())


def has_matrix(module: nn.Module) -> bool:
    """Whether a module holds weights of several dimensions: dropout and the like pass on what they are given."""
    return any(weight.dim() > 1 for weight in (*module.parameters(), *module.buffers()))


class Watch:
    """Notes which modules are given what the heads of the layer that runs added up."""

    def __init__(self):
        self.newest: tuple[int, Tensor] | None = None  # the layer that attended last, and what its heads added up
        self.taken: dict[int, list[tuple[nn.Module, int, Tensor]]] = {}

    def attended(self, layer: int, output: Float[Tensor, "batch heads rows dim"]) -> None:
        """Is told what the heads of a layer added up."""
        self.newest = layer, output

    def look(self, module: nn.Module, args: tuple) -> None:
        """Is told what a module is given."""
        if self.newest is None or not args or not isinstance(args[0], Tensor):
            return
        layer, output = self.newest
        wide, given = output.transpose(1, 2).flatten(2), args[0]
        alike = given.numel() == wide.numel() and given.shape[-1] == wide.shape[-1] and has_matrix(module)
        if alike and torch.equal(given.reshape(wide.shape), wide.to(given)):
            self.taken.setdefault(layer, []).append((module, output.shape[1], given))


@contextmanager
def watching(modules: Sequence[nn.Module]) -> Iterator[Watch]:
    """A watch over all that lies in these modules."""
    watch = Watch()
    inner = dict.fromkeys(part for module in modules for part in module.modules() if part is not module)
    hooks = [part.register_forward_pre_hook(watch.look) for part in inner]
    try:
        yield watch
    finally:
        for hook in hooks:
            hook.remove()


def projections_of(watch: Watch, layers: int) -> list[Projection | str]:
    """For each layer that holds entries its output projection, or why there is none, as a clause."""
    return [_found(watch.taken.get(layer, []), layer) for layer in range(layers)]


def _found(taken: list[tuple[nn.Module, int, Tensor]], layer: int) -> Projection | str:
    for module, heads, given in taken:
        projection = Projection(module, heads, given.shape[-1], given.flatten()[:1].clone())
        if projection.plain:
            return projection
        try:
            if projection.linear(given):
                return projection
        except (RuntimeError, TypeError, ValueError):  # it takes more than one tensor, as a layer around others does
            continue
    return CURVED.format(layer) if taken else NONE.format(layer)
