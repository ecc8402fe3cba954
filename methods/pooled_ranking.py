"""How many of the best entries of several layers and heads lie in each of them: one ranking over all."""

from pvcbench.policy import torch


def best_of_all(scores, total):
    """For each layer [batch, kv_heads]: how many of its entries are among a sample's best `total` of all layers.

    `scores` are a layer's, [batch, kv_heads, entries], equally many entries in each. Of equal ones the first stays.
    """
    counts = [torch.zeros(layer.shape[:2], dtype=torch.int64) for layer in scores]
    entries, heads = scores[0].shape[-1], [layer.shape[1] for layer in scores]
    for sample in range(len(scores[0]) if entries else 0):
        flat = torch.cat([layer[sample].flatten().to(scores[0].device) for layer in scores])
        best = flat.sort(descending=True, stable=True).indices[:total]
        wins = torch.bincount(best.cpu() // entries, minlength=sum(heads)).split(heads)
        for count, own in zip(counts, wins, strict=True):
            count[sample] = own
    return counts


def whole_heads(scores, total):
    """The same where the heads with the highest scores of any entry keep all, and the next one the rest."""
    entries, heads = scores[0].shape[-1], [layer.shape[1] for layer in scores]
    if not entries:
        return best_of_all(scores, total)
    highest = torch.cat([layer.amax(-1).to(scores[0].device) for layer in scores], 1)
    rank = highest.sort(dim=1, descending=True, stable=True).indices.argsort(1).cpu()
    return list((total - rank * entries).clamp(0, entries).split(heads, 1))
