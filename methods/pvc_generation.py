"""PvC while generating: blocks of entries that left the recent window are compressed, the prompt's never again.

A block is `exceed_length_to_compress` consecutive tokens. With `gen_blocks: generated` all of them were generated, as
the authors' text says; with `official` they are the columns [-(1 + R + 16), -(1 + R)) that the authors' code takes as
soon as R + 16 entries were generated: the first block starts with the prompt's last token, and every block fires one
entry earlier. (Its HEAD counts tokens seen for entries cached and so loses the prompt; this is its rule as it was
before, by each layer's cached length.)

A block is ranked by the distance-weighted attention of the R + 1 newest rows. Token by token, and after a first chunk
such as a question, these are the rows since the block was complete, so two running sums per entry say exactly what a
store of the rows would. (A later chunk of several tokens would add rows just before them; no protocol feeds one.)
"""

from methods.pvc_ladder import schedule
from pvcbench.policy import torch


def first_place(method, seen):
    """The position at which the first block starts."""
    return seen.shape.tokens - (1 if method.gen_blocks == "official" else 0)


def recent_rows(method, seen):
    """R + 1: it grows with the first layer's entries and never falls below the prompt's."""
    return max(method.recent(seen.first_layer_entries), method.recent(seen.shape.tokens))


def block_totals(method, seen):
    """Attention from the rows after an entry's block was complete: its sum, and its sum weighted by the row number."""
    if seen.totals is None or seen.later >= recent_rows(method, seen):  # the row is old by the end of its chunk
        return seen.totals
    size, start = method.exceed_length_to_compress, first_place(method, seen)
    row = seen.seen - 1 - (start + ((seen.positions - start) // size + 1) * size)  # 0 for the first such row
    counts = (row >= 0) & (seen.positions >= start)
    attention = seen.mass.double().mean(1, keepdim=True).expand(row.shape) * counts
    return seen.totals + torch.stack((attention, attention * row), -1)


def block_to_compress(method, seen):
    """Slots of the whole blocks outside the recent window that rank below what a block keeps, or None."""
    size, start, recent = method.exceed_length_to_compress, first_place(method, seen), recent_rows(method, seen)
    share = schedule("cosine", method.gen_decay_ratio, seen.layer, seen.shape.layers)
    kept = max(int(size * method.gen_compress_ratio * share), 1)
    outside = max(0, (seen.seen - recent - start) // size)
    block = (seen.positions - start).div(size, rounding_mode="floor")
    generated = block[0, 0][block[0, 0] >= 0]
    whole = (torch.bincount(generated, minlength=outside)[:outside] > kept).nonzero().flatten().tolist()
    if not whole:
        return None
    waited = (seen.seen - recent - (start + (block + 1) * size)).clamp(min=0)  # rows since, now outside the window
    growth = (method.distance_weight - 1) / max(recent - 1, 1)
    total, weighted = seen.totals.unbind(-1)
    worth = total + growth * (weighted - waited * total)
    ranked = [worth.masked_fill(block != one, float("inf")).sort(dim=-1, stable=True).indices for one in whole]
    return torch.cat([slots[..., : size - kept] for slots in ranked], -1)
