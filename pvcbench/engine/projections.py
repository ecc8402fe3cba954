"""Finds each layer's output projection: the matrix that takes what its heads add up and writes it into hidden states.

It is found by what it does: on a short prompt, the module of the layer that is given exactly what the heads added up,
side by side, and answers linearly, with what then leaves the layer's attention. No model is asked for its name, and
where something comes in between (a gate, a norm) there is no such module.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

CLOSE = {torch.float64: 1e-6, torch.float32: 1e-3}  # of the largest number; of sixteen bits and fewer:
COARSE = 0.05
LATENT = "the entries of this model are latents, which every query head expands for itself"
NONE = "no matrix of its own takes what the heads of layer {} add up as it is"
CURVED = "what layer {} does with what its heads add up is not linear"
SEVERAL = "several modules of layer {} take what its heads add up"
CHANGED = "what layer {} makes of what its heads add up is changed once more before it leaves its attention"


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
        if self.plain:
            return True
        answer, nothing = self.module(given), self.module(torch.zeros_like(given))
        if not (isinstance(answer, Tensor) and answer.shape[:-1] == given.shape[:-1]):
            return False
        return close(given @ self.matrix().flatten(0, 1) + nothing, answer)


def close(one: Tensor, other: Tensor) -> bool:
    """Whether tensors are equal but for rounding."""
    if one.numel() != other.numel() or one.shape[-1] != other.shape[-1]:
        return False
    off = (one.reshape(other.shape) - other).abs().max()
    return bool(off <= CLOSE.get(other.dtype, COARSE) * other.abs().max())


def has_matrix(module: nn.Module) -> bool:
    """Whether a module holds weights of several dimensions: dropout and the like pass on what they are given."""
    return any(weight.dim() > 1 for weight in (*module.parameters(), *module.buffers()))


class Watch:
    """Notes which modules in a decoder are given what the heads of the layer that runs added up."""

    def __init__(self, modules: nn.ModuleList, attentions: Iterable[nn.Module]):
        self.modules, self.attentions, self.hooks = modules, set(attentions), []
        self.newest: tuple[int, Tensor] | None = None  # the layer that attended last, and what its heads added up
        self.taken: dict[int, list[tuple[nn.Module, int, Tensor]]] = {}
        self.left: dict[int, list[tuple[nn.Module, Tensor]]] = {}  # by layer what modules around others gave since

    def __enter__(self) -> "Watch":
        inner = [part for part in self.modules.modules() if part is not self.modules]
        self.hooks = [part.register_forward_pre_hook(self.look) for part in inner]
        around = [part for part in inner if any(True for _ in part.children())]
        self.hooks += [part.register_forward_hook(self.leave) for part in around]
        return self

    def __exit__(self, *_) -> None:
        for hook in self.hooks:
            hook.remove()

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

    def leave(self, module: nn.Module, args: tuple, output) -> None:
        """Is told what a module gave."""
        first = output[0] if isinstance(output, tuple) else output
        if self.newest is not None and isinstance(first, Tensor):
            self.left.setdefault(self.newest[0], []).append((module, first))

    def found(self, layer: int) -> Projection | str:
        """The output projection of a layer, or why it has none, as a clause."""
        taken = self.taken.get(layer, [])
        if not taken:
            return NONE.format(layer)
        outermost, (_, heads, given) = set(taken[0][0].modules()), taken[0]
        if not all(module in outermost for module, _, _ in taken):
            return SEVERAL.format(layer)
        like = given.flatten()[:1].clone()
        tried = (Projection(module, heads, given.shape[-1], like) for module, _, given in taken)
        projection = next((one for one, (*_, given) in zip(tried, taken, strict=True) if answers(one, given)), None)
        if projection is None:
            return CURVED.format(layer)
        written, holders = projection.module(given), self.holders(layer, projection.module)
        left = [one for module, one in self.left.get(layer, []) if module in holders]
        if any(close(one, written) or close(one, given) for one in left):
            return projection
        return CHANGED.format(layer)

    def holders(self, layer: int, projection: nn.Module) -> set[nn.Module]:
        """The attention modules of a layer or, where none is known, the module that holds its projection."""
        ran = {module for module, _ in self.left.get(layer, [])}
        return ran & self.attentions or {module for module in ran if projection in module.children()}


def answers(projection: Projection, given: Tensor) -> bool:
    """Whether a module takes a tensor alone, and is linear."""
    try:
        return projection.linear(given)
    except (RuntimeError, TypeError, ValueError):  # it takes more, as a module around several others does
        return False
