"""How many of the best entries of several layers and heads lie in each of them: one ranking over all.

A budget is a mean over layers of the mean over their heads. Where layers differ in their KV heads, an entry of a layer
with fewer heads counts for more of it, and up to one entry of the budget may be left.
"""

from math import lcm

from pvcbench.policy import torch


def best_of_all(scores, each):
    """How many entries of each layer, [batch, kv_heads], are among a sample's best, `each` to a head on average.

    `scores` are a layer's, [batch, kv_heads, entries], equally many entries in each. Of equal ones the first stays.
    """
    place = scores[0].device  # layers may lie on several
    counts = [torch.zeros(layer.shape[:2], dtype=torch.int64, device=place) for layer in scores]
    entries, heads, costs = scores[0].shape[-1], [layer.shape[1] for layer in scores], costs_of(scores)
    for sample in range(len(scores[0]) if entries else 0):
        flat = torch.cat([layer[sample].flatten().to(place) for layer in scores])
        owner = flat.sort(descending=True, stable=True).indices // entries
        wins = owner[costs[owner].cumsum(0) <= limit(scores, each)].bincount(minlength=sum(heads)).split(heads)
        for count, own in zip(counts, wins, strict=True):
            count[sample] = own
    return counts


def whole_heads(scores, each):
    """The same where the heads with the highest scores of any entry keep all, and the next one what is left."""
    entries, heads, costs = scores[0].shape[-1], [layer.shape[1] for layer in scores], costs_of(scores)
    if not entries:
        return best_of_all(scores, each)
    highest = torch.cat([layer.amax(-1).to(scores[0].device) for layer in scores], 1)
    order = highest.sort(dim=1, descending=True, stable=True).indices
    before = (costs[order] * entries).cumsum(1) - costs[order] * entries  # what the heads ahead of each take
    counts = ((limit(scores, each) - before) // costs[order]).clamp(0, entries)
    return list(torch.zeros_like(counts).scatter_(1, order, counts).split(heads, 1))


def costs_of(scores):
    """What an entry of each head, layer after layer, takes of the budget, in whole numbers."""
    unit = lcm(*(layer.shape[1] for layer in scores))
    counts = [layer.shape[1] for layer in scores]
    return torch.cat([torch.full((count,), unit // count, device=scores[0].device) for count in counts])


def limit(scores, each):
    """The budget in the same numbers."""
    return lcm(*(layer.shape[1] for layer in scores)) * len(scores) * each
