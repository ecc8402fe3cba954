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

from pvcbench.engine.attention import Rule, attention_blocks


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
        window = None if self.window is None else (self.window, self.positions)
        yield from attention_blocks(self.query, self.keys, scale=self.rule, window=window)

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
