"""The Triton programs behind `kernels`: one tile each of attention's LSE, its mass, and a decoding step.

Logits are kept in base 2 inside (`factor` is the scale times log2 e), sums in float32. `cap`, in base 2 too, counts
where `CAPPED` says so. Strides are in elements; the last dimension is contiguous. Head sizes are padded to a power of
two. A program writes what no other one writes, so results are the same in every run. `WIDEN` is for Triton's
interpreter, which cannot multiply bfloat16: there, tiles become float32 first, which changes no product.
"""

from typing import no_type_check  # the tests' hook would wrap these functions, whose source Triton reads

import triton
import triton.language as tl

LN2 = tl.constexpr(0.6931471805599453)
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
@no_type_check
def pressed(logits, cap):
    """Logits in (-cap, cap): cap * tanh(logits / cap), all in base 2; exp2 is what interpreter and compiler share."""
    return cap - 2 * cap / (1 + tl.exp2(logits / cap * (2 * LOG2E)))


@triton.jit(do_not_specialize=["queries", "keys", "first", "last"])
@no_type_check
def column_mass_program(
    query, key, weights, lse, mass,
    query_batch, query_head, query_row, key_batch, key_head, key_row, lse_batch, lse_head,
    heads, queries, keys, first, last, factor, cap, share,
    GROUP: tl.constexpr, OWN: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, CAPPED: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """The mass that a block of keys receives from the rows first..last-1 of OWN query heads.

    Blocks of early keys are seen by most rows: they are the first of the grid's second axis, and so start first.
    """
    program, block = tl.program_id(0), tl.program_id(1)
    teams = heads // OWN
    batch, head = (program // teams).to(tl.int64), (program % teams) * OWN
    columns, dims = block * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, WIDTH)
    key += batch * key_batch + (head // GROUP).to(tl.int64) * key_head
    places = key + columns[:, None].to(tl.int64) * key_row + dims[None, :]
    keys_tile = tl.load(places, mask=(columns[:, None] < keys) & (dims[None, :] < DIM), other=0.0)
    if WIDEN:
        keys_tile = keys_tile.to(tl.float32)
    offset = keys - queries
    lowest = tl.maximum(first, block * COLUMNS - offset)  # the first row that sees a key of this block
    partly = tl.maximum(block * COLUMNS + COLUMNS - 1 - offset - lowest, 0)  # rows from there that miss some
    middle = lowest + (partly + ROWS - 1) // ROWS * ROWS
    received = tl.full((COLUMNS, ROWS), 0.0, dtype=tl.float32)
    for own in range(0, OWN):
        rows_of = query + batch * query_batch + (head + own).to(tl.int64) * query_head
        norms = lse + batch * lse_batch + (head + own).to(tl.int64) * lse_head
        for whole in tl.static_range(0, 2):  # tiles on the diagonal, then those below it
            begin = lowest if whole == 0 else middle
            end = tl.minimum(middle, last) if whole == 0 else last
            for row in range(begin, end, ROWS):
                rows = row + tl.arange(0, ROWS)
                inside = rows < last
                at = rows_of + rows[None, :].to(tl.int64) * query_row + dims[:, None]
                tile = tl.load(at, mask=inside[None, :] & (dims[:, None] < DIM), other=0.0)
                if WIDEN:
                    tile = tile.to(tl.float32)
                norm = tl.load(norms + rows, mask=inside, other=float("inf")) * LOG2E
                weight = tl.load(weights + rows, mask=inside, other=0.0)
                logits = tl.dot(keys_tile, tile, input_precision="ieee") * factor
                if CAPPED:
                    logits = pressed(logits, cap)
                logits = logits - norm[None, :]
                if whole == 0:
                    logits = tl.where(columns[:, None] <= rows[None, :] + offset, logits, float("-inf"))
                received += tl.exp2(logits) * weight[None, :]
    total = tl.sum(received, 1) * share
    tl.store(mass + program.to(tl.int64) * keys + columns, total, mask=columns < keys)


@triton.jit(do_not_specialize=["queries", "keys"])
@no_type_check
def row_lse_program(
    query, key, lse,
    query_batch, query_head, query_row, key_batch, key_head, key_row, heads, queries, keys, factor, cap,
    GROUP: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CAPPED: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """The log of the sum of exponentials of a tile of rows of one head; late rows, which see most keys, go first."""
    program, tile_number = tl.program_id(0), tl.num_programs(1) - 1 - tl.program_id(1)
    batch, head = (program // heads).to(tl.int64), program % heads
    rows, dims = tile_number * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    query += batch * query_batch + head.to(tl.int64) * query_head
    key += batch * key_batch + (head // GROUP).to(tl.int64) * key_head
    places = query + rows[:, None].to(tl.int64) * query_row + dims[None, :]
    tile = tl.load(places, mask=(rows[:, None] < queries) & (dims[None, :] < DIM), other=0.0)
    if WIDEN:
        tile = tile.to(tl.float32)
    offset = keys - queries
    whole = tl.minimum(tile_number * ROWS + offset + 1, keys) // COLUMNS * COLUMNS  # keys that every row sees
    end = tl.minimum(tile_number * ROWS + ROWS + offset, keys)
    most = tl.full((ROWS,), float("-inf"), dtype=tl.float32)
    total = tl.full((ROWS,), 0.0, dtype=tl.float32)
    for partly in tl.static_range(0, 2):  # blocks that every row sees, then those on the diagonal
        begin = 0 if partly == 0 else whole
        stop = whole if partly == 0 else end
        for start in range(begin, stop, COLUMNS):
            columns = start + tl.arange(0, COLUMNS)
            at = key + columns[None, :].to(tl.int64) * key_row + dims[:, None]
            block = tl.load(at, mask=(columns[None, :] < keys) & (dims[:, None] < DIM), other=0.0)
            if WIDEN:
                block = block.to(tl.float32)
            logits = tl.dot(tile, block, input_precision="ieee") * factor
            if CAPPED:
                logits = pressed(logits, cap)
            if partly == 1:
                logits = tl.where(columns[None, :] <= rows[:, None] + offset, logits, float("-inf"))
            higher = tl.maximum(most, tl.max(logits, 1))
            total = total * tl.exp2(most - higher) + tl.sum(tl.exp2(logits - higher[:, None]), 1)
            most = higher
    tl.store(lse + program.to(tl.int64) * queries + rows, (most + tl.log2(total)) * LN2, mask=rows < queries)


@triton.jit(do_not_specialize=["slots"])
@no_type_check
def slot_decode_program(
    query, key, value, lengths, outputs, norms, logits,
    query_batch, query_head, key_batch, key_head, key_slot, value_batch, value_head, value_slot,
    length_batch, length_head, kv_heads, slots, factor, cap,
    GROUP: tl.constexpr, TILE: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
    VALUE_DIM: tl.constexpr, VALUE_WIDTH: tl.constexpr, COLUMNS: tl.constexpr, SPLITS: tl.constexpr,
    WEIGHTS: tl.constexpr, CAPPED: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Attention of the query heads of one KV head over its share of the filled slots: output, and LSE in base 2."""
    program, split = tl.program_id(0), tl.program_id(1)
    batch, kv_head = (program // kv_heads).to(tl.int64), (program % kv_heads).to(tl.int64)
    length = tl.load(lengths + batch * length_batch + kv_head * length_head).to(tl.int32)
    length = tl.minimum(length, slots)
    blocks = (length + COLUMNS - 1) // COLUMNS
    part = (blocks + SPLITS - 1) // SPLITS * COLUMNS
    first, last = split * part, tl.minimum(split * part + part, length)
    members, dims, value_dims = tl.arange(0, TILE), tl.arange(0, WIDTH), tl.arange(0, VALUE_WIDTH)
    real = members < GROUP
    query += batch * query_batch + kv_head * GROUP * query_head
    key += batch * key_batch + kv_head * key_head
    value += batch * value_batch + kv_head * value_head
    places = query + members[:, None] * query_head + dims[None, :]
    tile = tl.load(places, mask=real[:, None] & (dims[None, :] < DIM), other=0.0)
    if WIDEN:
        tile = tile.to(tl.float32)
    heads = program.to(tl.int64) * GROUP + members
    most = tl.full((TILE,), float("-inf"), dtype=tl.float32)
    total = tl.full((TILE,), 0.0, dtype=tl.float32)
    output = tl.full((TILE, VALUE_WIDTH), 0.0, dtype=tl.float32)
    for start in range(first, last, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        inside, at = columns < last, columns.to(tl.int64)
        keys_at = key + at[None, :] * key_slot + dims[:, None]
        keys_tile = tl.load(keys_at, mask=inside[None, :] & (dims[:, None] < DIM), other=0.0)
        if WIDEN:
            keys_tile = keys_tile.to(tl.float32)
        scores = tl.dot(tile, keys_tile, input_precision="ieee") * factor
        if CAPPED:
            scores = pressed(scores, cap)
        if WEIGHTS:
            tl.store(logits + heads[:, None] * slots + at[None, :], scores, mask=real[:, None] & inside[None, :])
        scores = tl.where(inside[None, :], scores, float("-inf"))
        higher = tl.maximum(most, tl.max(scores, 1))
        weights, shrink = tl.exp2(scores - higher[:, None]), tl.exp2(most - higher)
        values_at = value + at[:, None] * value_slot + value_dims[None, :]
        values_tile = tl.load(values_at, mask=inside[:, None] & (value_dims[None, :] < VALUE_DIM), other=0.0)
        total = total * shrink + tl.sum(weights, 1)
        rounded = weights.to(values_tile.dtype)
        if WIDEN:
            rounded, values_tile = rounded.to(tl.float32), values_tile.to(tl.float32)
        output = output * shrink[:, None] + tl.dot(rounded, values_tile, input_precision="ieee")
        most = higher
    total = tl.where(total > 0, total, 1.0)  # a split without slots: its LSE is -inf
    output = output / total[:, None]
    row = heads * SPLITS + split
    places = outputs + row[:, None] * VALUE_DIM + value_dims[None, :]
    tl.store(places, output, mask=real[:, None] & (value_dims[None, :] < VALUE_DIM))
    tl.store(norms + row, most + tl.log2(total), mask=real)


@triton.jit
@no_type_check
def combine_program(
    outputs, norms, sinks, result, lse, heads,
    VALUE_DIM: tl.constexpr, VALUE_WIDTH: tl.constexpr, SPLITS: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    """One head's output and LSE (base 2) from its splits; a sink is one more split, whose values are 0."""
    head = tl.program_id(0).to(tl.int64)
    splits, dims = tl.arange(0, SPLITS), tl.arange(0, VALUE_WIDTH)
    norm = tl.load(norms + head * SPLITS + splits)
    most = tl.max(norm, 0)
    if SINKS:
        sink = tl.load(sinks + head % heads) * LOG2E
        most = tl.maximum(most, sink)
    most = tl.where(most == float("-inf"), 0.0, most)  # an empty head: no slot is filled
    weight = tl.exp2(norm - most)
    total = tl.sum(weight, 0)
    if SINKS:
        total += tl.exp2(sink - most)
    total = tl.where(total > 0, total, 1.0)
    places = outputs + (head * SPLITS + splits)[:, None] * VALUE_DIM + dims[None, :]
    parts = tl.load(places, mask=(splits[:, None] >= 0) & (dims[None, :] < VALUE_DIM), other=0.0)
    output = tl.sum(parts * weight[:, None], 0) / total
    tl.store(result + head * VALUE_DIM + dims, output.to(result.dtype.element_ty), mask=dims < VALUE_DIM)
    tl.store(lse + head, most + tl.log2(total))


@triton.jit(do_not_specialize=["slots"])
@no_type_check
def weights_program(
    logits, lse, lengths, length_batch, length_head, heads, slots, GROUP: tl.constexpr, COLUMNS: tl.constexpr
):
    """Turns logits into attention weights in place, 0 where no entry is."""
    head, block = tl.program_id(0), tl.program_id(1)
    batch, kv_head = (head // heads).to(tl.int64), (head % heads // GROUP).to(tl.int64)
    length = tl.load(lengths + batch * length_batch + kv_head * length_head).to(tl.int32)
    columns = block * COLUMNS + tl.arange(0, COLUMNS)
    places = logits + head.to(tl.int64) * slots + columns
    norm = tl.load(lse + head)
    scores = tl.load(places, mask=(columns < length) & (columns < slots), other=float("-inf"))
    tl.store(places, tl.where(columns < length, tl.exp2(scores - norm), 0.0), mask=columns < slots)
