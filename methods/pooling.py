"""How many entries each head keeps where the heads of a layer, or of all layers, share one budget by their scores.

Layers with equally many KV heads share one, so that the mean over layers is met where they have others. The first and
last entries of every head stay whatever their scores; of equals the earlier comes first.
"""

from pvcbench.policy import torch


def pooled(scores, each, first, last):
    """Entries of each head of some layers that are in the best of all of them, `each` a head on average."""
    found = [None] * len(scores)
    for places, inner, heads in alike(scores, first, last):
        flat = torch.cat([layer.flatten(1).to(scores[0].device) for layer in inner], 1)
        best = flat.argsort(dim=1, descending=True, stable=True)[:, : max(0, each - first - last) * heads * len(inner)]
        won = torch.zeros_like(flat, dtype=torch.long).scatter(1, best, 1)
        parts = won.view(len(flat), len(inner), heads, -1).sum(-1)
        for place, part in zip(places, parts.unbind(1), strict=True):
            found[place] = first + last + part
    return found


def whole_heads(scores, each, first, last):
    """The same where the heads with the best entry of all keep everything, and the next one what is left."""
    found = [None] * len(scores)
    for places, inner, heads in alike(scores, first, last):
        entries = inner[0].shape[-1]
        if not entries:
            return pooled(scores, each, first, last)
        best = torch.cat([layer.amax(-1).to(scores[0].device) for layer in inner], 1)
        order = best.argsort(dim=1, descending=True, stable=True)
        total = max(0, each - first - last) * heads * len(inner)
        left = (total - entries * torch.arange(order.shape[1], device=order.device)).clamp(0, entries)
        counts = torch.zeros_like(order).scatter(1, order, left.expand(order.shape))
        for place, part in zip(places, counts.split(heads, 1), strict=True):
            found[place] = first + last + part
    return found


def alike(scores, first, last):
    """The layers by their number of KV heads: their places, their scores between the first and last, that number."""
    for heads in {layer.shape[1] for layer in scores}:
        places = [place for place, layer in enumerate(scores) if layer.shape[1] == heads]
        yield places, [scores[place][..., first : scores[place].shape[-1] - last].double() for place in places], heads
