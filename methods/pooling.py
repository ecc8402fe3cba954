"""How many entries each head keeps where the heads of a layer, or of all layers, share one budget by their scores."""

from pvcbench.policy import torch


def pooled(scores, each, first, last):
    """Entries of each head of some layers that are in the best of all of them, `each` a head on average.

    The first and last entries of every head are among these, whatever their scores; of equals the earlier comes first.
    Layers with equally many KV heads share one budget, so that the mean over layers is met where they have others.
    """
    found = [None] * len(scores)
    for heads in {layer.shape[1] for layer in scores}:
        places = [place for place, layer in enumerate(scores) if layer.shape[1] == heads]
        inner = [scores[place][..., first : scores[place].shape[-1] - last].flatten(1) for place in places]
        flat = torch.cat([layer.to(scores[0].device).double() for layer in inner], 1)  # layers may lie on several
        total = max(0, each - first - last) * heads * len(inner)
        best = flat.argsort(dim=1, descending=True, stable=True)[:, :total]
        won = torch.zeros_like(flat, dtype=torch.long).scatter(1, best, 1)
        parts = won.view(len(flat), len(inner), heads, -1).sum(-1)
        for place, part in zip(places, parts.unbind(1), strict=True):
            found[place] = first + last + part
    return found
