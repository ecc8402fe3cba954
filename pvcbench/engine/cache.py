"""The evicting cache: entries that carry their positions, and the two caches a model call runs on.

A physical slot is never a position, and tokens seen are never a length. The model hands new keys and values to
`update`, which passes them through; the registered attention function then lets the cache store them and attend.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin, DummyLayer, LinearAttentionLayer

from pvcbench.engine.attention import Rule, slot_attention, visible_slots
from pvcbench.engine.latent import Latents, is_latent
from pvcbench.engine.layout import Layout
from pvcbench.engine.query_rows import Ring
from pvcbench.engine.rotary import PLAIN, Turn, rotate
from pvcbench.engine.states import State
from pvcbench.errors import UserError


class PassThrough(CacheLayerMixin):
    """A layer as transformers sees it: it stores nothing and tells how many tokens were seen."""

    def __init__(self, cache, number):
        super().__init__()
        self.cache, self.number = cache, number

    def lazy_initialization(self, key_states, value_states):
        self.is_initialized = True

    def update(self, key_states, value_states, *args, **kwargs):
        self.cache.updated = self.number, (key_states, value_states)
        return key_states, value_states

    def get_seq_length(self):
        return self.cache.first + self.cache.seen  # some models tell positions by it

    def get_mask_sizes(self, query_length):
        return self.cache.seen + query_length, 0

    def get_max_length(self):
        return -1


class PassThroughWithState(LinearAttentionLayer, PassThrough):
    """A layer that attends and carries a state at once."""

    def __init__(self, cache, number, number_of_states):
        PassThrough.__init__(self, cache, number)
        LinearAttentionLayer.__init__(self, number_of_states)


class AttendingCache(Cache):
    """A cache that computes attention itself, because only it knows which entry sits where."""

    def __init__(self, layout: Layout):
        super().__init__(layers=[self._layer(layout, place) for place in range(layout.layers)])
        self.layout, self.seen, self.first = layout, 0, 0  # `first` is the position that the model gives token 0
        self.reach = 0  # tokens of the whole sequence, by which some models choose their rotary tables
        self.updated: tuple | None = None  # the layer that handed in entries and has not attended yet, and these

    def _layer(self, layout, place):
        number, states = layout.numbers.get(place), layout.states.get(place)
        if number is not None:
            return PassThrough(self, number) if states is None else PassThroughWithState(self, number, states)
        return DummyLayer() if states is None else LinearAttentionLayer(states)

    @property
    def states(self) -> dict[int, State]:
        """What the decoder's layers carry now, uncopied."""
        return {place: State.of(self.layers[place]) for place in self.layout.states}

    def before_attention(self, layer: int, module, args: tuple, kwargs: dict) -> None:
        """Is told the inputs of a layer's attention before it runs."""

    def places(self, ids: Int[Tensor, "rows tokens"]) -> Int[Tensor, "rows tokens"]:
        """The positions of tokens about to be fed."""
        start = self.first + self.seen
        return torch.arange(start, start + ids.shape[1], device=ids.device).expand(len(ids), -1)

    def run(self, module, query, key, value, rule: Rule, window: int | None):
        """Attention of the layer that has just handed in entries (keys and values, or latents), or of a reader."""
        updated, self.updated = self.updated, None
        if updated is None:
            return self._read(module, query, rule, key.shape[2])
        number, stored = updated
        if is_latent(module, stored):
            return self.attend_to_latents(number, Latents(module, query, key, value, stored), rule, window)
        return self.attend(number, query, key, value, rule, window)

    def attend_to_latents(self, layer: int, latents: Latents, rule: Rule, window: int | None):
        """The same where a layer hands in latents: these are stored."""
        return latents.output(self.attend(layer, *latents.absorbed(), rule, window))

    def _read(self, module, query, rule: Rule, new: int):
        """Attention of a layer that handed in nothing, since it reads the entries of another."""
        place = getattr(module, "layer_idx", None)
        if place not in self.layout.readers:
            raise UserError(
                "this model cannot be measured: a layer of it attends more often than it hands new entries to the cache"
            )
        return self.follow(place, self.layout.readers[place], query, rule, new)

    def follow(self, place: int, layer: int, query, rule: Rule, new: int):
        """Attention of the decoder layer at `place` to the entries of another, which took in `new` in this call.

        The queries are those of the call's last tokens: of all of them, or of fewer.
        """
        raise TypeError(f"{type(self).__name__} does not run layers that read the entries of others")

    def attend(self, layer: int, query, key, value, rule: Rule, window: int | None):
        """Stores the new keys and values of a layer and returns the attention output of the new queries."""
        raise TypeError(f"{type(self).__name__} does not attend")


@dataclass
class Entries:
    """The cache of one layer: slots filled from the left, as many as each head's length says.

    A new entry takes the next slot; a dropped one is overwritten by the last, since order means nothing once RoPE
    is applied. Where `sinks` is set, the first slots hold those keys rotated to their place in the cache.
    """

    keys: Float[Tensor, "batch kv_heads slots dim"]
    values: Float[Tensor, "batch kv_heads slots value_dim"]
    positions: Int[Tensor, "batch kv_heads slots"]  # -1 where empty
    lengths: Int[Tensor, "batch kv_heads"]
    filled: int  # of the longest head
    ragged: bool  # whether lengths differ
    window: int | None = None
    limit: int | None = None  # entries that a cell which holds may keep here, by its plan
    start: int = 0  # `filled` after the fork
    target: int = 0  # what `filled` comes down to whenever a cell that holds evicts
    ring: Ring | None = None  # the newest query rows, where the method of a cell that holds needs them
    totals: Float[Tensor, "batch kv_heads slots channels"] | None = None
    sinks: Float[Tensor, "batch kv_heads sinks dim"] | None = None
    rotary: tuple[Tensor, Tensor] | None = None
    turn: Turn = PLAIN  # how the sinks turn
    shift: int = 0  # by which the sinks stand rotated

    @property
    def slides(self) -> int | None:
        """The window that entries leave for good; None where sinks stay in their slots."""
        return self.window if self.sinks is None else None

    @property
    def nbytes(self) -> int:
        """Bytes of all slots."""
        return self.keys.nbytes + self.values.nbytes

    def repeated(self, count: int) -> "Entries":
        """A copy with so many rows of the batch for each."""
        tensors = {name: getattr(self, name) for name in ("keys", "values", "positions", "lengths", "totals", "sinks")}
        copies = {name: old.repeat_interleave(count, 0) for name, old in tensors.items() if old is not None}
        return replace(self, **copies, ring=None if self.ring is None else self.ring.repeated(count))

    def append(self, key, value, first: int) -> None:
        """Stores new entries at positions first, first + 1, ..."""
        count = key.shape[2]
        if self.filled + count > self.keys.shape[2]:
            raise RuntimeError(f"cache layer is full: {self.filled} + {count} entries in {self.keys.shape[2]} slots")
        new = torch.arange(first, first + count, device=key.device)
        if self.ragged:
            slots = (self.lengths[..., None] + torch.arange(count, device=key.device))[..., None]
            self.keys.scatter_(2, slots.expand_as(key), key)
            self.values.scatter_(2, slots.expand_as(value), value)
            self.positions.scatter_(2, slots[..., 0], new.expand(slots.shape[:-1]))
        else:
            slots = slice(self.filled, self.filled + count)
            self.keys[:, :, slots], self.values[:, :, slots], self.positions[:, :, slots] = key, value, new
        if self.totals is not None:  # a freed slot may hold the totals of its last tenant
            self.totals.masked_fill_((self.positions >= first)[..., None], 0.0)
        self.lengths += count
        self.filled += count

    def place_sinks(self, shift: int) -> None:
        """Rotates the first slots so that they stand where they do in the cache, seen from the query's position."""
        if self.sinks is not None and shift != self.shift:
            self.shift = shift
            self.keys[:, :, : self.sinks.shape[2]] = rotate(self.sinks, shift, self.rotary, self.turn)

    def visible(self, first: int, count: int, slots: int):
        """The mask of the first slots for queries at positions first, ..., or None where each sees every slot."""
        cut = self.window is not None and first + count > self.window
        if count == 1 and not self.ragged and not cut:
            return None
        rows = torch.arange(first, first + count, device=self.keys.device)
        return visible_slots(self.positions[:, :, :slots], rows.expand(len(self.keys), -1), self.window)

    def attend(self, query, rule: Rule, first: int):
        """Attention of new queries at positions first, first + 1, ... over all entries, their own included."""
        keys, values = self.keys[:, :, : self.filled], self.values[:, :, : self.filled]
        return slot_attention(query, keys, values, rule, self.visible(first, query.shape[2], self.filled))

    def drop(self, slots: Int[Tensor, "batch kv_heads dropped"]) -> None:
        """Frees slots: from the highest down, each is overwritten by the last filled one."""
        (self._drop_one if slots.shape[-1] == 1 else self._drop_many)(slots)

    def _drop_one(self, slot: Int[Tensor, "batch kv_heads 1"]) -> None:
        last = self.lengths[..., None] - 1
        for name in ("keys", "values", "positions", "totals"):
            tensor = getattr(self, name)
            if tensor is not None:
                shape = (*slot.shape, *tensor.shape[3:]) if tensor.dim() == 4 else slot.shape
                to, source = (index.view(*index.shape, *[1] * (tensor.dim() - 3)) for index in (slot, last))
                tensor.scatter_(2, to.expand(shape), tensor.gather(2, source.expand(shape)))
        self.positions.scatter_(2, last, -1)
        self.lengths -= 1
        self.filled -= 1

    def _drop_many(self, slots: Int[Tensor, "batch kv_heads dropped"]) -> None:
        """The moves are followed on slot numbers first, so that every entry moves once."""
        source = torch.arange(self.filled, device=slots.device).repeat(*slots.shape[:2], 1)
        for freed in slots.sort(-1, descending=True).values.unbind(-1):
            self.lengths -= 1
            source.scatter_(2, freed[..., None], source.gather(2, self.lengths[..., None]))
        before, self.filled = self.filled, self.filled - slots.shape[-1]
        source = source[..., : self.filled]
        for name in ("keys", "values", "positions", "totals"):
            tensor = getattr(self, name)
            if tensor is not None:
                index = source.view(*source.shape, *[1] * (tensor.dim() - 3))
                tensor[:, :, : self.filled] = tensor.gather(2, index.expand(*source.shape, *tensor.shape[3:]))
        empty = torch.arange(before, device=slots.device) >= self.lengths[..., None]
        self.positions[:, :, :before].masked_fill_(empty, -1)
