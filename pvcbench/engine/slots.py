"""Fixed-size cache slots of one layer, for steps of one shape: a new entry reuses the slot freed before it."""

from dataclasses import dataclass, field

from jaxtyping import Float, Int
from torch import Tensor

from pvcbench.engine.attention import Rule, slot_attention, slot_weights, visible_slots
from pvcbench.engine.cache import Entries
from pvcbench.engine.kernels.interface import covers, slot_decode
from pvcbench.engine.rotary import angles, turn


@dataclass
class Slots:
    """The entries of one layer of a group, as a static step sees them."""

    entries: Entries
    used: int  # slots that a step attends to
    free: Int[Tensor, "batch kv_heads"]  # the slot that the next entry takes
    whole: bool  # whether every used slot holds an entry once the new one is in
    kernel: bool  # whether the decoding kernel attends, which reads filled slots only
    cos: Float[Tensor, "steps rotary"] | None = None  # of the sinks' shift in each step, where they move
    sin: Float[Tensor, "steps rotary"] | None = None
    saved: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, entries: Entries, holds: bool, seen: int, kernel: bool) -> "Slots":
        """Ready for the first step after a fork; `holds` where the layer evicts one entry per step."""
        room = entries.keys.shape[2] - entries.filled
        entries.place_sinks(seen - entries.filled)
        kernel = kernel and entries.window is None and covers(entries.keys, entries.values)
        if not holds:
            return cls(entries, entries.keys.shape[2], entries.lengths, False, kernel)
        slots = cls(entries, entries.filled + 1, entries.lengths.clone(), not entries.ragged, kernel)
        if entries.sinks is not None:
            slots.cos, slots.sin = angles(entries.rotary, seen - entries.filled, room)
        return slots

    def write(self, key, value, place: Int[Tensor, "1"], step: Int[Tensor, "1"]) -> None:
        """Puts the new entry into the free slot, and the sinks where they stand in this step."""
        entries, slot = self.entries, self.free[..., None]
        if self.cos is not None:
            count = entries.sinks.shape[2]
            entries.keys[:, :, :count] = turn(entries.sinks, self.cos[step], self.sin[step], entries.turn)
        entries.keys.scatter_(2, slot[..., None].expand_as(key), key)
        entries.values.scatter_(2, slot[..., None].expand_as(value), value)
        entries.positions.scatter_(2, slot, place.expand_as(slot))
        if entries.totals is not None:  # the slot may hold the totals of its last tenant
            entries.totals.scatter_(2, slot[..., None].expand(*slot.shape, entries.totals.shape[-1]), 0.0)

    def attend(self, query, rule: Rule, place: Int[Tensor, "1"], weights: bool):
        """Attention of the new row over all entries, its own included, and its weights where they are wanted."""
        entries = self.entries
        parts = query, entries.keys[:, :, : self.used], entries.values[:, :, : self.used], rule
        if self.kernel:
            lengths, options = entries.lengths + 1, {"cap": rule.cap, "sinks": rule.sinks}
            return slot_decode(*parts[:3], lengths, rule.scale, weights, **options)
        visible = None
        if not self.whole or entries.window is not None:
            positions = entries.positions[:, :, : self.used]
            visible = visible_slots(positions, place.expand(len(query))[:, None], entries.window)
        if weights:
            output, rows = slot_weights(*parts, visible)
            return output, rows[:, :, 0]
        return slot_attention(*parts, visible), None

    def state(self) -> list[Tensor]:
        """The small tensors that a step changes; keys and values change in the free slot only."""
        entries = self.entries
        known = entries.positions, entries.lengths, self.free, entries.totals
        return [tensor for tensor in known if tensor is not None]

    def save(self) -> None:
        """Remembers the state before a trial step."""
        self.saved = [tensor.clone() for tensor in self.state()]

    def restore(self) -> None:
        """Goes back to the state that was saved."""
        for tensor, before in zip(self.state(), self.saved, strict=True):
            tensor.copy_(before)

    def settle(self) -> None:
        """Moves the last entry into the free slot, so that slots are filled from the left again."""
        self.entries.lengths += 1
        self.entries.filled += 1
        self.entries.drop(self.free[..., None])
        self.free = self.entries.lengths.clone()
