"""The models of KVzap: what their files hold, and what they make of hidden states."""

from methods.trained import require_fit
from pvcbench.policy import UserError, torch


def maps(weights, layer, file):
    """The linear maps of a layer, one after the other, as weights and biases."""
    start = f"layers.{layer}"
    names = [start] if f"{start}.weight" in weights else [f"{start}.0", f"{start}.2"]
    try:
        return [(weights[f"{name}.weight"], weights[f"{name}.bias"]) for name in names]
    except KeyError as error:
        raise UserError(f"{file} is no KVzap model: it has no tensor {error}") from error


def foreseen(weights, seen, file):
    """The logarithms of the scores, [batch, kv_heads, entries]."""
    first = maps(weights, 0, file)
    layers = len({name.split(".")[1] for name in weights})
    require_fit(file, (layers, first[0][0].shape[1], len(first[-1][1])), seen)
    found = seen.hidden.to(torch.promote_types(seen.hidden.dtype, torch.float32))
    for place, (weight, bias) in enumerate(maps(weights, seen.layer, file)):
        found = torch.nn.functional.gelu(found) if place else found
        found = found @ weight.to(found).T + bias.to(found)
    return found.transpose(1, 2)
