"""The recurrent and convolution states that some layers keep instead of cache entries or beside them.

A state sums up all tokens so far, whatever is evicted elsewhere: every cell takes a copy along, and no budget changes
its size.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import LinearAttentionLayer


@dataclass
class State:
    """The tensors of one layer, a row per sequence, by kind and by the layer's own numbers.

    transformers updates these tensors in place, so a state whose tensors are parts of a batch's moves on with it.
    """

    conv: dict[int, Tensor | None]
    recurrent: dict[int, Tensor | None]

    @classmethod
    def of(cls, layer: LinearAttentionLayer) -> "State":
        """The state that a cache's layer has now, uncopied."""
        return cls(dict(layer.conv_states), dict(layer.recurrent_states))

    @classmethod
    def cat(cls, states: Iterable["State"]) -> "State":
        """The rows of several states one after the other, copied."""
        conv, recurrent = zip(*((state.conv, state.recurrent) for state in states), strict=True)
        return cls(_joined(conv), _joined(recurrent))

    def map(self, change: Callable[[Tensor], Tensor]) -> "State":
        """With every tensor changed."""
        conv, recurrent = (
            {number: None if old is None else change(old) for number, old in part.items()}
            for part in (self.conv, self.recurrent)
        )
        return State(conv, recurrent)

    def tensors(self) -> list[Tensor]:
        """All tensors there are."""
        return [old for part in (self.conv, self.recurrent) for old in part.values() if old is not None]

    def put(self, layer: LinearAttentionLayer) -> None:
        """Makes this the state of a cache's layer, as if that had read the tokens itself."""
        layer.conv_states, layer.recurrent_states = dict(self.conv), dict(self.recurrent)
        layer.is_conv_states_initialized = {number: old is not None for number, old in self.conv.items()}
        layer.is_recurrent_states_initialized = {number: old is not None for number, old in self.recurrent.items()}
        layer.has_previous_state = dict(layer.is_conv_states_initialized)
        layer.conv_kernel_size = {n: None if old is None else old.shape[-1] for n, old in self.conv.items()}
        for known in self.tensors()[:1]:
            layer.dtype, layer.device = known.dtype, known.device

    def copy_(self, other: "State") -> None:
        """Takes over another state's numbers in place."""
        for mine, theirs in zip(self.tensors(), other.tensors(), strict=True):
            mine.copy_(theirs)

    @property
    def row_bytes(self) -> int:
        """Bytes of one sequence."""
        return sum(old[:1].nbytes for old in self.tensors())


def _joined(parts: tuple[dict[int, Tensor | None], ...]) -> dict[int, Tensor | None]:
    """The tensors of each number one after the other."""
    first = parts[0]
    return {n: None if first[n] is None else torch.cat([part[n] for part in parts]) for n in first}
