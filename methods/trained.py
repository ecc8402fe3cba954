"""What methods with a trained file share."""

from pvcbench.policy import UserError


def require_fit(file, sizes, seen):
    """Raises UserError where a file was made for other sizes: layers, width of the hidden states, KV heads."""
    own = (seen.shape.layers, seen.hidden.shape[-1], seen.keys.shape[1])
    if tuple(sizes) != own:
        theirs, ours = (
            "{} layers with a KV cache, hidden states of {}, {} KV heads".format(*one) for one in (sizes, own)
        )
        raise UserError(f"{file} was made for another model: {theirs}; this model has {ours}")
