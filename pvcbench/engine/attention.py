"""Attention and its mass: the only place where attention weights are ever formed.

Almost every score in this field is a weighted column sum of softmax attention over some query rows, so one
primitive serves them all, block of rows by block of rows, in memory linear in the context:

    >>> import torch
    >>> query, key = torch.randn(1, 4, 10, 8), torch.randn(1, 2, 10, 8)
    >>> attention_mass(query, key, torch.ones(10)).sum(-1)  # each of the 10 rows hands out a mass of 1
    tensor([[10., 10., 10., 10.]])
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from pvcbench.engine.kernels.flash import flash_attn, sdpa_with_lse, widened
from pvcbench.engine.kernels.interface import column_mass, covers, reduced, row_lse

BACKENDS = ("blocked", "reference", "triton")
_BLOCK_ELEMENTS = {"cpu": 2**21, "cuda": 2**26}  # softmax entries formed at once: fits a CPU's cache, fills a GPU


@dataclass(frozen=True)
class Rule:
    """How products of queries and keys become attention weights."""

    scale: float
    cap: float | None = None  # logits are pressed into (-cap, cap)
    sinks: Float[Tensor, " heads"] | None = None  # a logit of each query head that takes its share and gives nothing

    @classmethod
    def of(cls, scale: "float | Rule | None", dim: int) -> "Rule":
        """The plain rule of a scale, 1/sqrt(dim) unless given."""
        return scale if isinstance(scale, Rule) else cls(dim**-0.5 if scale is None else scale)

    @property
    def plain(self) -> bool:
        """Whether it is what every attention library computes."""
        return self.cap is None and self.sinks is None

    def capped(self, logits: Tensor) -> Tensor:
        """Scaled products as logits, in place; to be masked afterwards."""
        return logits if self.cap is None else logits.div_(self.cap).tanh_().mul_(self.cap)

    def softmax(self, logits: Float[Tensor, "batch kv_heads groups rows keys"]) -> Tensor:
        """The weights of masked logits, in place: they sum to what the sink leaves."""
        if self.sinks is None:
            return torch.softmax(logits, -1, out=logits)
        sinks = self.sinks.to(logits).view(*logits.shape[1:3], 1, 1)
        return logits.sub_(torch.logaddexp(logits.logsumexp(-1, keepdim=True), sinks)).exp_()

    def with_sinks(
        self, output: Float[Tensor, "batch heads rows value_dim"] | None, lse: Float[Tensor, "batch heads rows"]
    ) -> tuple[Float[Tensor, "batch heads rows value_dim"] | None, Float[Tensor, "batch heads rows"]]:
        """Output and LSE of rows without sinks as those with them: each row keeps what its sink leaves."""
        if self.sinks is None:
            return output, lse
        sinks = self.sinks.to(lse)[:, None]
        if output is not None:
            output = (output * torch.sigmoid(lse - sinks)[..., None]).to(output.dtype)
        return output, torch.logaddexp(lse, sinks)


class Chunked(int):
    """A window whose left edge jumps: a row sees the tokens of its own chunk, of which position 0 begins the first."""


def attention_mass(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch kv_heads keys dim"],
    row_weights: Float[Tensor, "*sets queries"],
    *,
    scale: float | Rule | None = None,
    visible: Bool[Tensor, "batch kv_heads queries keys"] | None = None,
    backend: str = "blocked",
    group: str = "none",
) -> Float[Tensor, "*sets batch columns keys"]:
    """Weighted column sums of softmax attention: `mass[j] = sum_i row_weights[i] * softmax_j(q_i . k_j * scale)`.

    The queries are the last rows of the context: row i sees the keys up to `keys - queries + i`. Where slots are
    not in that order (a cache after eviction), `visible` says what each row sees instead. Returns query heads, in
    float32 or better; with `group` "sum" or "mean" KV heads, reduced over the query heads that share one.
    """
    options = {"scale": scale, "visible": visible, "backend": backend, "group": group}
    return observed_attention(query, key, None, row_weights, **options)[1]


def observed_attention(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch kv_heads keys dim"],
    value: Float[Tensor, "batch kv_heads keys value_dim"] | None,
    row_weights: Float[Tensor, "*sets queries"],
    *,
    scale: float | Rule | None = None,
    visible: Bool[Tensor, "batch kv_heads queries keys"] | None = None,
    window: tuple[int, Int[Tensor, "batch keys"]] | None = None,
    backend: str = "blocked",
    group: str = "none",
) -> tuple[Float[Tensor, "batch heads queries value_dim"] | None, Float[Tensor, "*sets batch columns keys"]]:
    """Attention output and attention mass of the same rows in one pass (see `attention_mass`).

    `window` is a sliding window's width and the keys' positions, which it is measured by. The backend "triton" sums
    columns by a flash forward's LSE; what it does not cover (`visible`, `window`, float64, heads wider than the
    kernels hold) runs as "blocked" does.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown attention backend {backend!r}: choose from {', '.join(BACKENDS)}")
    rule = Rule.of(scale, query.shape[-1])
    weights = row_weights.reshape(-1, row_weights.shape[-1])
    if backend == "triton" and visible is None and window is None and covers(query):
        output, lse = (None, None) if value is None else attention_with_lse(query, key, value, rule)
        mass = mass_by_lse(query, key, weights, lse, rule, group)
    else:
        run = _reference if backend == "reference" else _blocked
        output, mass = run(query, key, value, weights, rule, visible, window)
        mass = reduced(mass, key.shape[1], group)
    return output, mass.reshape(*row_weights.shape[:-1], *mass.shape[1:])


def _reference(query, key, value, weights, rule, visible, window):
    """Plain softmax in float64: what the other backends are held against."""
    groups, (queries, keys) = query.shape[1] // key.shape[1], (query.shape[2], key.shape[2])
    logits = query.double() @ key.double().repeat_interleave(groups, 1).mT * rule.scale
    logits = logits if rule.cap is None else rule.cap * torch.tanh(logits / rule.cap)
    if visible is not None:
        allowed = visible.repeat_interleave(groups, 1)
    elif window is not None:
        allowed = visible_slots(window[1][:, None], window[1][:, keys - queries :], window[0])
    else:
        allowed = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
    logits = logits.masked_fill(~allowed, float("-inf"))
    if rule.sinks is not None:  # one more column, which gives nothing
        column = rule.sinks.double().view(1, -1, 1, 1).expand(*logits.shape[:-1], 1)
        attention = torch.cat((logits, column), -1).softmax(-1)[..., :-1]
    else:
        attention = logits.softmax(-1)
    mass = torch.einsum("wq,bhqk->wbhk", weights.double(), attention)
    if value is None:
        return None, mass
    return (attention @ value.double().repeat_interleave(groups, 1)).to(query.dtype), mass


def attention_blocks(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch kv_heads keys dim"],
    *,
    scale: float | Rule | None = None,
    visible: Bool[Tensor, "batch kv_heads queries keys"] | None = None,
    window: tuple[int, Int[Tensor, "batch keys"]] | None = None,
    softmax: bool = True,
) -> Iterator[tuple[int, int, Float[Tensor, "batch heads rows seen"]]]:
    """Attention weights of the last rows, a block of rows at a time: first row, the row after the last, weights.

    `seen` ends with the last key that any row of the block sees. The next block takes the same memory, so what is
    wanted of a block must be computed, or copied, before it. Without `softmax` the masked logits.
    """
    rule = Rule.of(scale, query.shape[-1])
    (batch, heads, queries, _), (kv_heads, keys) = query.shape, key.shape[1:3]
    groups, pairs = heads // kv_heads, batch * kv_heads
    dtype = torch.promote_types(query.dtype, torch.float32)
    grouped = query.reshape(pairs, groups, queries, -1)
    transposed = key.reshape(pairs, keys, -1).mT.contiguous()
    size = _BLOCK_ELEMENTS.get(query.device.type, 2**24) // (batch * heads * keys)
    size = max(16, min(64 if query.device.type == "cpu" else 1024, size))
    buffer = torch.empty(pairs * groups * min(size, queries) * keys, dtype=query.dtype, device=query.device)
    future = torch.full((size, size), float("-inf"), dtype=dtype, device=query.device).triu(1)
    for start in range(0, queries, size):
        end = min(queries, start + size)
        rows, seen = end - start, keys - queries + end if visible is None else keys
        block = (grouped[:, :, start:end] * rule.scale).reshape(pairs, groups * rows, -1)
        logits = buffer[: pairs * groups * rows * seen].view(pairs, groups * rows, seen)
        logits = _product(block, transposed[..., :seen], logits).to(dtype).view(pairs, groups, rows, seen)
        logits = rule.capped(logits)
        if visible is None:
            logits[..., seen - rows :] += future[:rows, :rows]
        else:
            logits.masked_fill_(~visible[:, :, start:end].reshape(pairs, 1, rows, seen), float("-inf"))
        if window is not None:
            inside = visible_slots(window[1][:, None, :seen], window[1][:, seen - rows : seen], window[0])
            logits.view(batch, kv_heads, groups, rows, seen).masked_fill_(~inside[:, :, None], float("-inf"))
        logits = logits.view(batch, kv_heads, groups, rows, seen)
        yield start, end, (rule.softmax(logits) if softmax else logits).view(batch, heads, rows, seen)


def _blocked(query, key, value, weights, rule, visible, window):
    """Blocks of rows: one matrix product, one softmax, the column sum and the output while the block is in cache."""
    (batch, heads, queries, _), (kv_heads, keys) = query.shape, key.shape[1:3]
    groups, pairs = heads // kv_heads, batch * kv_heads
    value = None if value is None else value.reshape(pairs, keys, -1).contiguous()
    output = None if value is None else query.new_empty(pairs, groups, queries, value.shape[-1])
    dtype = torch.promote_types(query.dtype, torch.float32)
    mass = torch.zeros(len(weights), pairs, groups, keys, dtype=dtype, device=query.device)
    weights = weights.to(mass)
    for start, end, block in attention_blocks(query, key, scale=rule, visible=visible, window=window):
        rows, seen = block.shape[2:]
        attention = block.view(pairs, groups, rows, seen)
        for each, column in zip(weights, mass, strict=True):
            column[..., :seen] += each[start:end] @ attention
        if output is not None:
            flat = attention.view(pairs, groups * rows, seen).to(value.dtype)
            part = value.new_empty(pairs, groups * rows, value.shape[-1])
            output[:, :, start:end] = _product(flat, value[:, :seen], part).view(pairs, groups, rows, -1)
    output = None if output is None else output.view(batch, heads, queries, -1)
    return output, mass.view(len(weights), batch, heads, keys)


def _product(left, right, out):
    """Batched matrix product; on a CPU one by one, since its threads share a product better than a few products."""
    if left.is_cuda:
        return torch.bmm(left, right, out=out)
    for one, other, result in zip(left, right, out, strict=True):
        torch.mm(one, other, out=result)
    return out


def prompt_attention(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch kv_heads keys dim"],
    value: Float[Tensor, "batch kv_heads keys value_dim"],
    rule: Rule | float,
    kernel: str = "sdpa",
) -> Float[Tensor, "batch heads queries value_dim"]:
    """Causal attention of the last rows of a prompt over all of it: by SDPA or flash-attn where these can."""
    rule, size = Rule.of(rule, query.shape[-1]), value.shape[-1]
    if not rule.plain or kernel == "flash_attention_2":
        return attention_with_lse(query, key, value, rule, kernel)[0]
    value = widened(value, query.shape[-1])
    if query.shape[2] == key.shape[2]:
        options = {"is_causal": True}
    else:  # never without a mask here: SDPA would cut the keys to the first
        options = {"attn_mask": causal_lower_right(query.shape[2], key.shape[2])}
    output = F.scaled_dot_product_attention(query, key, value, scale=rule.scale, enable_gqa=True, **options)
    return output[..., :size]


def attention_with_lse(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch kv_heads keys dim"],
    value: Float[Tensor, "batch kv_heads keys value_dim"],
    rule: Rule | float,
    kernel: str = "sdpa",
) -> tuple[Float[Tensor, "batch heads queries value_dim"], Float[Tensor, "batch heads queries"] | None]:
    """`prompt_attention` and, where a library gives it, the log of what each row's weights are divided by.

    Sinks are taken into account by the LSE. What no library computes with one is computed in blocks. On a CPU, where
    the interpreter runs the kernels, a plain rule leaves the LSE to them.
    """
    rule = Rule.of(rule, query.shape[-1])
    if kernel == "flash_attention_2":
        return rule.with_sinks(*flash_attn(query, key, value, rule.scale, rule.cap))
    asked = rule.cap is None and not (rule.plain and query.device.type == "cpu")
    found = sdpa_with_lse(query, key, value, rule.scale) if asked else None
    if found is not None:
        return rule.with_sinks(*found)
    if rule.plain:
        return prompt_attention(query, key, value, rule), None
    return _blocked(query, key, value, query.new_zeros(0, query.shape[2]), rule, None, None)[0], None


def mass_by_lse(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch kv_heads keys dim"],
    weights: Float[Tensor, "sets queries"],
    lse: Float[Tensor, "batch heads queries"] | None,
    rule: Rule,
    group: str = "none",
) -> Float[Tensor, "sets batch columns keys"]:
    """The mass by the rows' weights, from Triton's kernels; the LSE is theirs too where no operator gave it."""
    if lse is None:
        lse = rule.with_sinks(None, row_lse(query, key, rule.scale, cap=rule.cap))[1]
    return column_mass(query, key, weights, lse, rule.scale, group, cap=rule.cap)


def windowed_attention(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch kv_heads keys dim"],
    value: Float[Tensor, "batch kv_heads keys value_dim"],
    rule: Rule | float,
    window: int,
    positions: Int[Tensor, "batch keys"],
    rows: int = 512,
) -> Float[Tensor, "batch heads queries value_dim"]:
    """Causal sliding-window attention of the last rows, by real positions, in blocks that skip what no row sees."""
    before, output = key.shape[2] - query.shape[2], []
    for start in range(0, query.shape[2], rows):
        end = min(query.shape[2], start + rows)
        own = positions[:, before + start : before + end]
        first = int((positions <= own[:, :1] - window).sum(1).min())
        seen = slice(first, before + end)
        mask = visible_slots(positions[:, None, seen], own, window)
        output.append(slot_attention(query[:, :, start:end], key[:, :, seen], value[:, :, seen], rule, mask))
    return torch.cat(output, 2)


def visible_slots(
    slots: Int[Tensor, "batch kv_heads slots"], rows: Int[Tensor, "batch queries"], window: int | None
) -> Bool[Tensor, "batch kv_heads queries slots"]:
    """Which slots each query row sees, by position: none of its future, none outside the window, no empty slot (-1)."""
    slots, rows = slots[:, :, None, :], rows[:, None, :, None]
    seen = (slots >= 0) & (slots <= rows)
    if window is None:
        return seen
    return seen & (slots >= rows - rows % window if isinstance(window, Chunked) else slots > rows - window)


def slot_attention(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch kv_heads slots dim"],
    value: Float[Tensor, "batch kv_heads slots value_dim"],
    rule: Rule | float,
    visible: Bool[Tensor, "batch masks queries slots"] | None,
) -> Float[Tensor, "batch heads queries value_dim"]:
    """Attention over cache slots in any order; the query heads of a group are folded into rows of their KV head."""
    batch, heads, queries, dim = query.shape
    kv_heads, rule = key.shape[1], Rule.of(rule, dim)
    if not rule.plain:
        size = max(1, _BLOCK_ELEMENTS.get(query.device.type, 2**24) // (batch * heads * key.shape[2]))
        parts = [slice(start, start + size) for start in range(0, queries, size)]
        masks = [None if visible is None else visible[:, :, part] for part in parts]
        pairs = zip(parts, masks, strict=True)
        return torch.cat([slot_weights(query[:, :, part], key, value, rule, mask)[0] for part, mask in pairs], 2)
    folded = query.reshape(batch, kv_heads, -1, dim)
    if visible is not None:
        shape = (batch, kv_heads, heads // kv_heads, queries, key.shape[2])
        visible = visible[:, :, None].expand(shape).reshape(batch, kv_heads, -1, key.shape[2])
    output = F.scaled_dot_product_attention(folded, key, value, attn_mask=visible, scale=rule.scale)
    return output.reshape(batch, heads, queries, value.shape[-1])


def slot_weights(
    query: Float[Tensor, "batch heads rows dim"],
    key: Float[Tensor, "batch kv_heads slots dim"],
    value: Float[Tensor, "batch kv_heads slots value_dim"],
    rule: Rule,
    visible: Bool[Tensor, "batch masks rows slots"] | None,
) -> tuple[Float[Tensor, "batch heads rows value_dim"], Float[Tensor, "batch heads rows slots"]]:
    """Attention of a few new rows over cache slots in any order, and its weights (float32 or better)."""
    (batch, heads, rows, dim), (kv_heads, slots) = query.shape, key.shape[1:3]
    logits = query.reshape(batch, kv_heads, -1, dim) * rule.scale @ key.mT
    logits = logits.to(torch.promote_types(query.dtype, torch.float32)).view(batch, kv_heads, -1, rows, slots)
    logits = rule.capped(logits)
    if visible is not None:
        logits = logits.masked_fill(~visible[:, :, None], float("-inf"))
    weights = rule.softmax(logits).view(batch, kv_heads, -1, slots)
    output = weights.to(value.dtype) @ value
    return output.reshape(batch, heads, rows, -1), weights.reshape(batch, heads, rows, slots)
