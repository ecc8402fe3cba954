"""How many entries each head keeps where the heads of a layer, or of all layers, share one budget by their scores."""

from pvcbench.policy import torch


def pooled(scores, each, first, last):
    """Entries of each head of some layers that are in the best of all of them, `each` a head on average.

    The first and last entries of every head are among these, whatever their scores; of equals the earlier comes first.
    """
    inner = [layer[..., first : layer.shape[-1] - last] for layer in scores]
    flat = torch.cat([layer.flatten(1).double().cpu() for layer in inner], 1)
    total = max(0, each - first - last) * sum(layer.shape[1] for layer in inner)
    best = flat.argsort(dim=1, descending=True, stable=True)[:, :total]
    won = torch.zeros_like(flat, dtype=torch.long).scatter(1, best, 1)
    parts = won.split([layer[0].numel() for layer in inner], 1)
    return [first + last + part.view(layer.shape).sum(-1) for part, layer in zip(parts, inner, strict=True)]
