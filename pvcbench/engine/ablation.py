"""Continues after a prompt with chosen cache entries hidden in chosen layers, to measure what they contribute.

reading = engine.read(prefill, entries, fed, wanted, [Variant({3: hidden})])
reading.logprobs[0]  # nothing hidden
reading.logprobs[1]  # the first variant

All variants of a call share one forward pass. The batch starts as the one row that sees everything; a variant joins it
at the first layer in which something is hidden from it, since until then it is that row. Recurrent layers begin with
what they carry after the prompt, whatever is hidden: the prompt itself was read whole.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pvcbench.engine.attention import Rule, visible_slots
from pvcbench.engine.cache import AttendingCache
from pvcbench.engine.prefill import Prefill
from pvcbench.engine.query_rows import Rows
from pvcbench.engine.teacher_forcing import CALL_BYTES

_BLOCK_ELEMENTS = 2**22  # attention weights formed at once


@dataclass(frozen=True)
class Variant:
    """The entries of a prompt that are hidden, by layer; the mask of a layer may have one head for all."""

    hidden: Mapping[int, Bool[Tensor, "kv_heads entries"]]

    @property
    def first(self) -> int:
        """The first layer that differs from the one that sees everything."""
        return min(self.hidden)


@dataclass
class Reading:
    """What came of it: the row that saw everything first, then the variants in order."""

    logprobs: Float[Tensor, "variants tokens"]  # of the wanted tokens, nats
    predicted: Int[Tensor, "variants tokens"]  # the most likely tokens
    rows: list[Rows]  # of the fed tokens by layer, nothing hidden


class VariantCache(AttendingCache):
    """Shares a prompt's entries between variants; each has its own newer ones, since its hidden states differ."""

    def __init__(self, prefill: Prefill, entries: int, variants: Sequence[Variant], capture: bool):
        super().__init__(prefill.layout)
        self.prefill, self.entries, self.seen = prefill, entries, entries
        self.reach = prefill.reach
        self.variants, self.capture = variants, capture  # in order of their first layers
        self.rows: list[Rows] = []
        for place, state in prefill.states.items():
            state.map(self._spread(place)).put(self.layers[place])

    def _spread(self, place: int) -> Callable[[Tensor], Tensor]:
        """Copies what a decoder layer carries after the prompt, for each row of the batch that gets there."""
        numbers = self.layout.places
        rows = 1 + sum(numbers[variant.first] <= place for variant in self.variants)
        return lambda old: old.repeat(rows, *[1] * (old.dim() - 1))

    def before_layer(self, layer: int, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """The hidden states with those of the variants that begin to differ in this layer or in one beside it."""
        joining = sum(variant.first in self.layout.beside(layer) for variant in self.variants)
        if not joining:
            return args, kwargs
        hidden = args[0]
        return (torch.cat((hidden, hidden[:1].expand(joining, -1, -1))), *args[1:]), kwargs

    def attend(self, layer, query, key, value, rule, window):
        stored, count, window = self.prefill.layers[layer], len(query), self.prefill.windows[layer]
        keys, values = stored.keys[:, :, : self.entries], stored.values[:, :, : self.entries]
        new = torch.arange(self.entries, self.entries + key.shape[2], device=key.device)[None]
        positions = torch.cat((stored.positions[:, : self.entries], new), 1)
        causal = visible_slots(positions[:, None], new, window)
        if self.capture:
            own = torch.cat((keys, key[:1]), 2), torch.cat((values, value[:1]), 2)
            expand = self.prefill.expansions.get(layer)
            self.rows.append(Rows(layer, query[:1].clone(), *own, positions, rule, window, expand))
        output = []
        size = max(1, _BLOCK_ELEMENTS // (query[0, ..., 0].numel() * self.entries))
        for start in range(0, count, size):
            some = slice(start, min(count, start + size))
            hidden = self._hidden(layer, some, keys.shape[1])
            outside = None if window is None else ~causal[..., : self.entries]
            own = key[some], value[some], ~causal[..., self.entries :]
            output.append(shared_attention(query[some], (keys[0], values[0]), own, rule, hidden, outside))
        return torch.cat(output)

    def _hidden(self, layer, rows, kv_heads):
        """What is hidden from some rows of the batch in a layer, [rows, 1 or kv_heads, entries]; None: nothing."""
        own = [None if row == 0 else self.variants[row - 1].hidden.get(layer) for row in range(rows.start, rows.stop)]
        known = [mask for mask in own if mask is not None]
        if not known:
            return None
        heads = max(len(mask) for mask in known)
        nothing = torch.zeros_like(known[0][:1])
        return torch.stack([(nothing if mask is None else mask).expand(heads, -1) for mask in own])


def shared_attention(
    query: Float[Tensor, "rows heads tokens dim"],
    prompt: tuple[Float[Tensor, "kv_heads entries dim"], Float[Tensor, "kv_heads entries value_dim"]],
    own: tuple[Tensor, Tensor, Bool[Tensor, "1 1 tokens tokens"]],
    rule: Rule | float,
    hidden: Bool[Tensor, "rows masks entries"] | None,
    outside: Bool[Tensor, "1 1 tokens entries"] | None,
) -> Float[Tensor, "rows heads tokens value_dim"]:
    """Attention of rows that share a prompt's keys and values, uncopied, and have newer ones of their own.

    `own` holds these and what of them is each token's future; `hidden` differs by row, `outside` (a window) does not.
    """
    (keys, values), (own_keys, own_values, future) = prompt, own
    (rows, heads, tokens, dim), kv_heads = query.shape, len(keys)
    wide, rule = torch.promote_types(query.dtype, torch.float32), Rule.of(rule, dim)
    grouped = (query * rule.scale).reshape(rows, kv_heads, -1, dim)
    folded = grouped.transpose(0, 1).reshape(kv_heads, -1, dim)
    old = torch.stack([part @ one.mT for part, one in zip(folded, keys, strict=True)]).to(wide)
    old = rule.capped(old.view(kv_heads, rows, heads // kv_heads, tokens, -1))
    if hidden is not None:
        old.masked_fill_(hidden.transpose(0, 1)[:, :, None, None], float("-inf"))
    if outside is not None:
        old.masked_fill_(outside[:, :, None], float("-inf"))
    new = (grouped @ own_keys.mT).to(wide).view(rows, kv_heads, heads // kv_heads, tokens, -1).transpose(0, 1)
    new = rule.capped(new).masked_fill(future[:, :, None], float("-inf"))
    most = torch.maximum(old.amax(-1, keepdim=True), new.amax(-1, keepdim=True))  # finite: a token sees itself
    old, new = old.sub_(most).exp_(), new.sub_(most).exp_()
    total = old.sum(-1, keepdim=True) + new.sum(-1, keepdim=True)
    if rule.sinks is not None:
        total = total + (rule.sinks.to(most).view(kv_heads, 1, -1, 1, 1) - most).exp()
    weights = old.to(query.dtype).view(kv_heads, -1, old.shape[-1])
    output = torch.stack([part @ one for part, one in zip(weights, values, strict=True)]).view(*old.shape[:-1], -1)
    part = new.transpose(0, 1).to(query.dtype).reshape(rows, kv_heads, -1, tokens) @ own_values
    output = output + part.view(rows, kv_heads, -1, tokens, part.shape[-1]).transpose(0, 1)
    return (output / total).to(query.dtype).transpose(0, 1).reshape(rows, heads, tokens, -1)


def read(
    call: Callable[[VariantCache], Tensor],
    prefill: Prefill,
    entries: int,
    wanted: Int[Tensor, "1 tokens"],
    variants: Sequence[Variant],
    vocabulary: int,
) -> Reading:
    """Calls the model after the first entries of a prefill, with as many variants as their logits leave room for."""
    order = sorted(range(len(variants)), key=lambda number: variants[number].first)
    size = max(1, CALL_BYTES // (4 * vocabulary * wanted.shape[1]))
    logprobs, predicted, rows = {}, {}, []
    for start in range(0, max(1, len(order)), size):
        some = order[start : start + size]
        cache = VariantCache(prefill, entries, [variants[number] for number in some], capture=start == 0)
        logits = call(cache)
        rows = cache.rows or rows
        for place, number in enumerate([-1, *some]):
            own = logits[place].to(torch.promote_types(logits.dtype, torch.float32))
            logprobs[number] = own.gather(-1, wanted[0][:, None])[:, 0] - own.logsumexp(-1)
            predicted[number] = own.argmax(-1)
    numbers = range(-1, len(variants))
    parts = (torch.stack([found[number] for number in numbers]) for found in (logprobs, predicted))
    return Reading(*parts, rows)
