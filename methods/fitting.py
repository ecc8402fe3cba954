"""What methods read from files, held against the model that they are used with."""

from pvcbench.policy import UserError, document, tensors, torch


def fitting(file, name, layer, shape, axes):
    """A layer of the tensor of a file by its name; raises UserError where it is not there or has another shape."""
    known = tensors(file)
    if name not in known:
        raise UserError(f"{file} holds no {name}, only {', '.join(sorted(known)) or 'nothing'}: name another file")
    found = known[name]
    if tuple(found.shape) != tuple(shape):
        raise UserError(
            f"{file}: {name} is {list(found.shape)}, and for this model it would be {list(shape)} ({axes}): "
            "it belongs to another model"
        )
    if not bool(found[layer].isfinite().all()):
        raise UserError(f"{file}: {name} has NaN or infinite numbers in layer {layer}")
    return found[layer]


def head_weights(file, layers, heads=None):
    """The mean of each query head's numbers in a JSON file, [layers, heads], which maps "layer-head" to a list."""
    told = document(file)
    told = told if isinstance(told, dict) else {}
    heads = heads or max(1, len(told) // layers)
    names = [f"{layer}-{head}" for layer in range(layers) for head in range(heads)]
    if set(names) != set(told):
        raise UserError(
            f"{file} names {len(told)} heads, and this model has {layers} layers of {heads}: it must map each of "
            f'"0-0" to "{names[-1]}" to a list of numbers'
        )
    if not all(isinstance(told[name], list) and told[name] and all(map(weighs, told[name])) for name in names):
        raise UserError(f"{file}: every head must have a list of one or more numbers, 0 or more")
    means = [sum(told[name]) / len(told[name]) for name in names]
    return torch.tensor(means, dtype=torch.float64).view(layers, heads)


def weighs(number):
    """Whether a JSON value is a number that can be a weight."""
    return isinstance(number, int | float) and not isinstance(number, bool) and 0 <= number < float("inf")
