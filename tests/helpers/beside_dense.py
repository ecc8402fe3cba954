"""A method's cells decoded beside the dense reference under the mask of what they keep."""

import torch

from tiny import cell_of, dense, dense_masks, engine, fork, teach

DRAWS = torch.tensor([5, 70, 900])


def followed(family, ids, fed, method, chunks, host=None, exact_angles=False):
    """A method's cells by both decode policies, stepped together, each beside the dense reference under its mask.

    Yields (cell, prefill, kept positions per step, logits after each chunk, dense logits of all tokens).
    """
    host, batch = host or engine(family), len(ids)
    cells = [cell_of(method, host.shape(ids.shape[1]), hold) for hold in (False, True)]
    groups, both = fork(host, ids, cells, fed.shape[1], DRAWS[:batch]), torch.cat((ids, fed), 1)
    order = [(group, number) for group in groups for number in range(len(group.cells))]
    trace = teach(host, groups, fed.repeat(len(order), 1), chunks)
    logits = torch.stack(trace.logits, 1).split(batch)
    for (group, number), mine in zip(order, logits, strict=True):
        rows = slice(number * batch, (number + 1) * batch)
        kept = [(first, size, [layer[rows] for layer in step]) for first, size, step in trace.kept[groups.index(group)]]
        masks = dense_masks(kept, group.prefill, both.shape[1])
        ranks = ranks_of(masks, both.shape[1]) if method.positions == "cache" else None
        expected = dense(family, exact_angles)(both, masks, ranks=ranks)
        yield group.cells[number], group.prefill, [step for _, _, step in kept], mine, expected


def ranks_of(masks, tokens):
    """Places inside the cache: of each query among what it sees, and of each key it sees."""

    def ranks(layer):
        visible = masks(layer) & torch.ones(tokens, tokens, dtype=torch.bool).tril()
        places = (visible.cumsum(-1) - 1).clamp(min=0)
        return places.diagonal(dim1=-2, dim2=-1), places

    return ranks
