"""What CAKE sees of a layer, and its layer budgets: whole numbers by preference, rounded and capped as its code does.

>>> shared([1, 2, 3, 6], 400, 150)
[51, 83, 116, 150]
"""

from pvcbench.policy import torch


def older(seen, window):
    """The last rows' attention to what lies before the window, [batch, heads, rows, older]; zeros where it is empty."""
    before = seen.positions.shape[-1] - window
    if before < 1:
        return torch.zeros_like(seen.rows.query[:, :, :1, :1], dtype=torch.float32).expand(-1, -1, window, -1)
    return torch.cat([block[..., :before].clone() for _, _, block in seen.rows.blocks()], 2)


def shared(weights, total, most):
    """Whole numbers in proportion to weights, none above `most`; what that cuts off goes to the others alike."""
    whole = sum(weights)
    sizes = [int(weight / whole * total) if whole else total // len(weights) for weight in weights]
    while cut := sum(max(0, size - most) for size in sizes):
        sizes = handed([min(size, most) for size in sizes], cut, most)
    return handed(sizes, total - sum(sizes), most)


def handed(sizes, more, most):
    """Sizes with so many more, in equal parts to those below `most`; what does not divide goes to the first of them."""
    below = [place for place, size in enumerate(sizes) if size < most]
    each, rest = divmod(more, len(below)) if below else (0, 0)
    return [size + (each + (below.index(place) < rest) if size < most else 0) for place, size in enumerate(sizes)]
