"""What DefensiveKV makes of the attention of the last rows: the worst case of each entry, and a sure first stage."""

from pvcbench.policy import torch


def looked_at(seen, before):
    """The rows' attention to the first entries, [batch, heads, rows, before], and their sum over all others."""
    older, own = [], []
    for _, _, weights in seen.rows.blocks():
        older.append(weights[..., :before].clone())
        own.append(weights[..., before:].sum(-1))
    return torch.cat(older, 2), torch.cat(own, 2)


def worst_case(attention, kv_heads, kernel):
    """The largest attention over rows and a group's query heads, or the mean of these over entries where that is more.

    Each row is averaged over neighbours first and then scaled to the sum that it had.
    """
    near = torch.nn.functional.avg_pool1d(attention.flatten(0, 1), kernel, stride=1, padding=kernel // 2)
    near = near.view_as(attention)
    near = near * (attention.sum(-1, keepdim=True) / near.sum(-1, keepdim=True).clamp(min=1e-30))
    worst = near.unflatten(1, (kv_heads, -1)).amax((2, 3))
    return torch.maximum(worst, worst.mean(-1, keepdim=True))


def first_stage(attention, kv_heads, mass, most):
    """Which entries come before the one where the sum of the largest shares reaches the mass, `most` a head at most."""
    mean = attention.unflatten(1, (kv_heads, -1)).mean((2, 3)).double()
    shares, order = (mean / mean.sum(-1, keepdim=True).clamp(min=1e-30)).sort(dim=-1, descending=True, stable=True)
    reached = shares.cumsum(-1) >= mass[:, None, None]
    count = (reached.long().argmax(-1) * reached.any(-1)).clamp(max=most)
    return order.argsort(-1) < count[..., None]
