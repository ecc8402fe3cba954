"""What methods share that score a cache again and again by its newest query rows: its slots may have any order."""

from pvcbench.policy import torch


def in_order(positions):
    """Slots by position, empty ones last."""
    return positions.masked_fill(positions < 0, torch.iinfo(positions.dtype).max).argsort(-1)


def before_window(seen, window):
    """Which slots hold an entry before the newest `window` tokens."""
    return (seen.positions >= 0) & (seen.positions < seen.seen - window)


def mean_attention(seen, among, over_group=None):
    """The mean over the newest rows of their attention to some slots alone, [batch, kv_heads, query heads, slots].

    Each row's weights over these slots sum to 1. `over_group` reduces the logits of a KV head's query heads first.
    """
    kv_heads, slots = seen.positions.shape[1:]
    found, rows = 0.0, seen.rows.query.shape[2]
    for _, _, block in seen.rows.logits():
        logits = block.unflatten(1, (kv_heads, -1))
        logits = logits if over_group is None else over_group(logits)
        own = among[:, :, None, None, : logits.shape[-1]]
        weights = logits.masked_fill(~own, float("-inf")).softmax(-1).nan_to_num(0.0)  # a row may see none of them
        found = found + torch.nn.functional.pad(weights.sum(3), (0, slots - weights.shape[-1])) / rows
    return found


def pooled(numbers, positions, pool, kernel):
    """Numbers of slots pooled over those at neighbouring positions; the cache's neighbours, whatever lay between."""
    order = in_order(positions)[:, :, None].expand(numbers.shape)
    flat = numbers.gather(-1, order).flatten(1, 2)
    near = pool(flat, kernel, stride=1, padding=kernel // 2).view(numbers.shape)
    return torch.zeros_like(numbers).scatter(-1, order, near)
