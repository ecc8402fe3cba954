"""Streaming: a document under a budget that holds after every step (or every few), layer by layer.

A method decides from its own layer alone, so one forward pass projects all tokens of a layer at once, this cache scans
them for attention and eviction only, and the layer's MLP sees all of them again. The first tokens, up to the budget,
are an ordinary prefill; token-by-token decoding under hold gives the same numbers and is what the tests hold this to.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from pvcbench.engine import answers
from pvcbench.engine.attention import Rule, visible_slots, windowed_attention
from pvcbench.engine.cache import AttendingCache
from pvcbench.engine.evict import Group
from pvcbench.engine.rotary import cos_sin, tables_among, turn
from pvcbench.policy import Observation

BLOCK = 64  # rows whose logits are formed together


class StreamCache(AttendingCache):
    """The caches of one group, fed with many tokens per call, evicting after every `every` of them."""

    def __init__(self, group: Group, every: int = 1):
        super().__init__(group.prefill.layout)
        if any(entries.ragged for entries in group.layers):
            raise ValueError("streaming needs equally many entries in every head of a layer")
        self.group, self.every, self.seen = group, every, group.prefill.shape.tokens
        self.reach = group.prefill.reach
        for layer, state in group.states.items():
            state.put(self.layers[layer])
        self.tables = [None if table is None else [table] for table in group.prefill.rotary]

    def before_layer(self, layer: int, args: tuple, kwargs: dict) -> None:
        """Takes the rotary tables of the new positions; the first ones are kept, as cache positions need them."""
        given = tables_among(args, kwargs)
        for number in self.layout.beside(layer):
            if given is None or self.tables[number] is None:
                continue
            first, *rest = self.tables[number]
            table = tuple(part.to(first[0].device) for part in cos_sin(given))
            if not rest:
                first = tuple(torch.cat((old, new), 1) for old, new in zip(first, table, strict=True))
            self.tables[number] = [first, table]

    def attend(self, layer, query, key, value, rule, window):
        entries = self.group.layers[layer]
        if layer not in self.group.prefill.shape.evicted:
            return self._slide(entries, query, key, value, rule, entries.window)
        size = max(BLOCK // self.every, 1) * self.every
        blocks = range(0, query.shape[2], size)
        parts = (slice(start, start + size) for start in blocks)
        return torch.cat(
            [
                Block(self, layer, start, query[:, :, part], key[:, :, part], value[:, :, part], rule).run()
                for start, part in zip(blocks, parts, strict=True)
            ],
            2,
        )

    def _slide(self, entries, query, key, value, rule, window):
        """A sliding layer: its window is all it keeps, and all of it."""
        new = torch.arange(self.seen, self.seen + key.shape[2], device=key.device)
        keys, values = torch.cat((entries.keys, key), 2), torch.cat((entries.values, value), 2)
        positions = torch.cat((entries.positions, new.expand(*key.shape[:2], -1)), 2)
        first = max(0, keys.shape[2] - window + 1)
        store(entries, keys[:, :, first:], values[:, :, first:], positions[:, :, first:], None)
        return windowed_attention(query, keys, values, rule, window, positions[:, 0])


def store(entries, keys, values, positions, totals) -> None:
    """Puts these entries, filled to the last slot, in the place of all others."""
    entries.keys, entries.values, entries.positions, entries.totals = keys, values, positions, totals
    entries.filled = keys.shape[2]
    entries.lengths = torch.full(keys.shape[:2], entries.filled, device=keys.device)


class Block:
    """Some rows of one layer: their logits at once, then row after row the method's decisions.

    Slots are the entries before the block, then the block's own; an empty or dropped slot has position -1.
    """

    def __init__(self, cache: StreamCache, layer: int, start: int, query, key, value, rule: Rule):
        self.cache, self.group, self.layer, self.rule = cache, cache.group, layer, rule
        self.entries, self.cell = cache.group.layers[layer], cache.group.cells[0]
        self.budget = self.cell.within(self.entries.limit, self.entries.slides)
        self.start, self.first, self.rows = start, cache.seen + start, query.shape[2]
        self.before, self.query = self.entries.filled, query
        fresh = torch.full((*key.shape[:2], self.rows), -1, device=key.device)
        self.keys, self.values = torch.cat((self.entries.keys, key), 2), torch.cat((self.entries.values, value), 2)
        self.positions = torch.cat((self.entries.positions, fresh), 2)
        self.totals = self.entries.totals
        if self.totals is not None:
            zeros = self.totals.new_zeros(*key.shape[:2], self.rows, self.totals.shape[-1])
            self.totals = torch.cat((self.totals, zeros), 2)

    def run(self):
        """The attention output of the rows; the layer's entries move on."""
        alive = self._alive()
        logits = self._logits(alive)
        watches = self.cell.method.watches_decoding
        decide = self._watching if watches else self._blind
        attention = decide(logits, alive)
        batch, kv_heads, slots, width = self.values.shape
        flat = attention.view(batch, kv_heads, -1, slots).to(self.values.dtype)
        output = (flat @ self.values).view(batch, -1, self.rows, width)
        self._compact()
        return output

    def _alive(self) -> list[int]:
        """Entries before each row's chunk, as the plan bounds them."""
        found, filled = [], self.before
        for row in range(self.rows):
            if row % self.cache.every == 0:
                filled = self._bounded(self.before + row) if row else filled
            found.append(filled)
        return found

    def _bounded(self, entries: int) -> int:
        return entries if self.entries.limit is None else min(entries, self.entries.limit)

    def _logits(self, alive) -> Float[Tensor, "batch kv_heads groups rows slots"]:
        """Scaled products of all rows and slots, -inf where a row cannot see a slot even if nothing is dropped."""
        batch, kv_heads, slots, dim = self.keys.shape
        grouped = self.query.reshape(batch, kv_heads, -1, dim) * self.rule.scale
        logits = (grouped @ self.keys.mT).view(batch, kv_heads, -1, self.rows, slots)
        if self.entries.sinks is not None:  # the first slots: sinks are never dropped
            sinks = self.entries.sinks
            turned = self._turned(alive).reshape(batch, kv_heads, -1, dim) * self.rule.scale
            logits[..., : sinks.shape[2]] = (turned @ sinks.mT).view(batch, kv_heads, -1, self.rows, sinks.shape[2])
        rows = torch.arange(self.first, self.first + self.rows, device=self.keys.device)
        real = torch.cat((self.positions[:, :, : self.before], rows.expand(batch, kv_heads, -1)), 2)
        seen = visible_slots(real, rows.expand(batch, -1), self.entries.window)
        logits = self.rule.capped(logits.to(torch.promote_types(logits.dtype, torch.float32)))
        return logits.masked_fill_(~seen[:, :, None], float("-inf"))

    def _turned(self, alive):
        """The queries rotated back to their place in the cache, for the sinks that stay at theirs."""
        first, table = self.cache.tables[self.layer]
        place = torch.tensor([filled + row % self.cache.every for row, filled in enumerate(alive)])
        own = slice(self.start, self.start + self.rows)
        how = self.group.prefill.turns[self.layer].queries
        query = turn(self.query, table[0][0, own], -table[1][0, own], how)
        return turn(query, first[0][0, place.to(query.device)], first[1][0, place.to(query.device)], how)

    def _watching(self, logits, alive):
        """Row by row: attention over what is left, the method's totals, its choice."""
        gone = torch.zeros_like(logits[:, :, :1, 0])
        attention = torch.empty_like(logits)
        for row in range(self.rows):
            now = self.rule.softmax(logits[:, :, :, row : row + 1] + gone[:, :, :, None])[:, :, :, 0]
            attention[:, :, :, row] = now
            for slots in self._step(row, alive, now.flatten(1, 2)):
                gone.scatter_(-1, slots[:, :, None], float("-inf"))
        return attention

    def _blind(self, logits, alive):
        """The method's choices first, then the attention of all rows at once."""
        last = torch.full_like(self.positions, self.rows)  # the last row that still sees a slot
        for row in range(self.rows):
            for slots in self._step(row, alive, None):
                last.scatter_(-1, slots, row)
        seen = torch.arange(self.rows, device=last.device)[:, None] <= last[:, :, None]
        return self.rule.softmax(logits.masked_fill_(~seen[:, :, None], float("-inf")))

    def _step(self, row: int, alive, attention):
        """Fills the row's slot; yields the slots that the method frees after it."""
        method, every = self.cell.method, self.cache.every
        self.positions[:, :, self.before + row] = self.first + row
        filled, ends = alive[row] + row % every + 1, (row + 1) % every == 0 or row + 1 == self.rows
        excess = filled - self._bounded(filled) if ends else 0
        if not method.watches_decoding and excess <= 0:
            return
        view = self._observation(row, attention, excess)
        if method.watches_decoding:
            totals = answers.totals(method, view)
            if totals is not None:
                self.totals = totals
                view = replace(view, totals=totals)
        slots = answers.dropped(method, view, self.budget) if excess > 0 else None
        if excess > 0 and (slots is None or slots.shape[-1] != excess):
            raise answers.wrong(method, "drop", answers.told(slots), f"{excess} slots of each head, to hold the budget")
        if slots is not None:
            self.positions.scatter_(-1, slots, -1)
            yield slots

    def _observation(self, row: int, attention, excess: int):
        prefill = self.group.prefill
        return Observation(
            layer=self.layer,
            shape=prefill.shape,
            seen=self.first + row + 1,
            keys=self.keys,
            values=self.values,
            positions=self.positions,
            mass=attention,
            totals=self.totals,
            draws=prefill.observer.draws.to(self.keys.device),
            first_layer_entries=0,
            later=min(self.cache.every - 1 - row % self.cache.every, self.rows - 1 - row),
            excess=excess,
            window=self.entries.slides,
        )

    def _compact(self) -> None:
        """Gathers what is left, in order of slots; every head has dropped equally many."""
        left = self.positions >= 0
        kept = int(left[0, 0].sum())
        index = left.to(torch.uint8).sort(dim=-1, descending=True, stable=True).indices[..., :kept]

        def take(tensor):
            return None if tensor is None else tensor.gather(2, index[..., None].expand(-1, -1, -1, tensor.shape[-1]))

        store(self.entries, take(self.keys), take(self.values), self.positions.gather(2, index), take(self.totals))
