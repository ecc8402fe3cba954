"""Query rows of one layer with the entries they attend to: what analyses look at, block by block.

rows = engine.prefill(ids, capture=32).rows(0)
for first, last, weights in rows.blocks():  # weights [batch, heads, last - first, entries seen]
    ...
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pvcbench.engine.attention import Rule, attention_blocks, visible_slots


@dataclass(frozen=True)
class Rows:
    """The last query rows of one layer; row i of r sees the entries up to `entries - r + i`."""

    layer: int
    query: Float[Tensor, "batch heads rows dim"]
    keys: Float[Tensor, "batch kv_heads entries dim"]
    values: Float[Tensor, "batch kv_heads entries value_dim"]
    positions: Int[Tensor, "batch entries"]
    rule: Rule
    window: int | None
    expand: Float[Tensor, "heads width value_dim"] | None = None  # by which heads read values out of latents

    def blocks(self) -> Iterator[tuple[int, int, Float[Tensor, "batch heads rows seen"]]]:
        """Attention weights of some rows at a time; memory linear in the entries (see `attention_blocks`)."""
        yield from self._blocks(True)

    def logits(self) -> Iterator[tuple[int, int, Float[Tensor, "batch heads rows seen"]]]:
        """The same before the softmax, -inf where a row does not see an entry."""
        yield from self._blocks(False)

    def _blocks(self, softmax: bool):
        window = None if self.window is None else (self.window, self.positions)
        yield from attention_blocks(self.query, self.keys, scale=self.rule, window=window, softmax=softmax)

    def part(self, first: int, last: int) -> "Rows":
        """The rows first..last-1 of these, with the entries that the last of them sees."""
        seen = self.keys.shape[2] - self.query.shape[2] + last
        entries = {"keys": self.keys[:, :, :seen], "values": self.values[:, :, :seen]}
        return replace(self, query=self.query[:, :, first:last], positions=self.positions[:, :seen], **entries)

    def newest(self, count: int) -> "Rows":
        """The last `count` of these rows, or all of them."""
        rows = self.query.shape[2]
        return self if count >= rows else self.part(rows - count, rows)

    def head_values(self) -> Float[Tensor, "heads entries width"]:
        """The values that each query head adds up in the first row of the batch, out of latents where these are."""
        if self.expand is not None:
            return self.values[0] @ self.expand.mT
        return self.values[0].repeat_interleave(self.query.shape[1] // self.values.shape[1], 0)

    def shares(self, weights: Float[Tensor, "batch heads rows seen"]) -> Float[Tensor, "batch heads rows seen"]:
        """Attention weights as shares of what entries get: a learnt sink keeps the rest for itself."""
        return weights if self.rule.sinks is None else weights / weights.sum(-1, keepdim=True)

    def with_first_keys(self, keys: Float[Tensor, "batch kv_heads first dim"]) -> "Rows":
        """The same rows where the first entries have these keys."""
        return replace(self, keys=torch.cat((keys, self.keys[:, :, keys.shape[2] :]), 2))


@dataclass
class Ring:
    """The newest query rows of one layer while decoding, in memory of one size; the prompt's last rows come first."""

    slots: Float[Tensor, "batch heads size dim"]
    count: int = 0  # rows so far

    @classmethod
    def of(cls, rows: Float[Tensor, "batch heads rows dim"], size: int) -> "Ring":
        """A ring of so many rows that holds the last of these, or all."""
        ring = cls(rows.new_zeros(*rows.shape[:2], size, rows.shape[3]))
        ring.add(rows)
        return ring

    def add(self, rows: Float[Tensor, "batch heads rows dim"]) -> None:
        """Puts new rows in the place of the oldest."""
        size, new = self.slots.shape[2], rows.shape[2]
        self.count += new
        kept = min(size, new)
        places = torch.arange(self.count - kept, self.count, device=rows.device) % size
        self.slots[:, :, places] = rows[:, :, new - kept :]

    def repeated(self, count: int) -> "Ring":
        """A copy with so many rows of the batch for each."""
        return Ring(self.slots.repeat_interleave(count, 0), self.count)

    def newest(self) -> Float[Tensor, "batch heads rows dim"]:
        """The rows in order, the newest last."""
        size = self.slots.shape[2]
        if self.count <= size:
            return self.slots[:, :, : self.count]
        return self.slots.roll(-(self.count % size), 2)


@dataclass(frozen=True)
class SlotRows:
    """The newest query rows of one layer while decoding, before the slots of its cache, which have any order."""

    query: Float[Tensor, "batch heads rows dim"]
    keys: Float[Tensor, "batch kv_heads slots dim"]
    positions: Int[Tensor, "batch kv_heads slots"]  # -1 where empty
    seen: int  # tokens so far: the last row is that of position seen - 1
    rule: Rule
    window: int | None

    def blocks(self) -> Iterator[tuple[int, int, Float[Tensor, "batch heads rows slots"]]]:
        """Attention weights of some rows at a time over what is in the cache now (see `attention_blocks`)."""
        yield from self._blocks(True)

    def logits(self) -> Iterator[tuple[int, int, Float[Tensor, "batch heads rows slots"]]]:
        """The same before the softmax, -inf where a row does not see a slot."""
        yield from self._blocks(False)

    def _blocks(self, softmax: bool):
        rows = torch.arange(self.seen - self.query.shape[2], self.seen, device=self.positions.device)
        visible = visible_slots(self.positions, rows.expand(len(self.query), -1), self.window)
        yield from attention_blocks(self.query, self.keys, scale=self.rule, visible=visible, softmax=softmax)
