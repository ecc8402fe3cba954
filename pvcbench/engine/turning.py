"""Finds how each layer rotates keys and queries with position, by running the same tokens at other positions.

Tokens that stand elsewhere have the same hidden states in a model whose only position embedding is a rotary one, so
their keys and queries differ by rotation alone. No model is asked for its name.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pvcbench.engine.prefill import Prefill
from pvcbench.engine.rotary import SCALED, UNTURNED, Turn, gains_of, moved_by

TOKENS, SHIFT, FAR = 28, 9, 2**16
MOST = {torch.float64: 1e-4, torch.float32: 1e-2}  # of the largest number; tables are in float32 where keys are not
COARSE = 0.1  # the same for dtypes of sixteen bits; what is turned otherwise is off by about 1
STEADY = 0.03  # by how much rounding may change the norm of a query that stands elsewhere, of that norm
ADDED = "this model adds its positions to the hidden states"
HIDDEN = "the keys of layer {} depend on their positions by no tables that the model hands to its layers"
UNKNOWN = "how layer {} of this model rotates is not known to pvcbench"
NORMED = "this model norms its keys after their rotation, so that its attention depends on more than distances"


@dataclass(frozen=True)
class Turns:
    """How the keys of a layer turn, and how its queries do."""

    keys: Turn
    queries: Turn


def unmovable(reason: str) -> str:
    """Why cache positions do not fit a model, and what to do."""
    return (
        f"positions=cache needs rotary embeddings or none in every layer, and {reason}: "
        "set methods.<name>.positions=original"
    )


def turns_of(attentions: list[list[nn.Module]], here: Prefill, there: Prefill, shift: int) -> list[Turns | str]:
    """For each layer that holds entries how it turns, or why its entries cannot be moved, as a clause.

    `attentions` are those of each layer of the decoder. `here` and `there` are prefills of the same tokens, the second
    at positions that lie `shift` higher, that have captured all queries.
    """
    values = [prefill.layers[0].values for prefill in (here, there)]
    if not _apart(*values) <= _most(values[0]):
        return [ADDED] * len(here.layers)
    found = []
    for number, place in enumerate(here.layout.places):
        parts = [(prefill.layers[number].keys, prefill.queries[number]) for prefill in (here, there)]
        table = here.rotary[number]
        gains = [gain for module in attentions[place] for gain in gains_of(module, parts[0][0])]
        keys, queries = (moved_by(*pair, shift, table, gains, _most(pair[0])) for pair in zip(*parts, strict=True))
        if keys is None:
            found.append((HIDDEN if table is None else UNKNOWN).format(number))
        elif keys.gain is not None:
            found.append(NORMED)
        elif queries is None or queries.form is not keys.form:
            found.append(SCALED if queries is None and keys.form is UNTURNED else UNKNOWN.format(number))
        else:
            found.append(Turns(keys, queries))
    return found


def scaled(here: Prefill, far: Prefill) -> bool:
    """Whether queries far on are longer or shorter than those of the same tokens at the beginning: rotation is neither.

    A factor that grows slowly cannot be told from rounding where positions lie close to each other.
    """
    for one, other in zip(here.queries, far.queries, strict=True):
        ratio = other.double().norm(dim=-1) / one.double().norm(dim=-1)
        if not abs(ratio.median().item() - 1) <= STEADY:
            return True
    return False


def level(config) -> int | None:
    """The tokens of a sequence until which a model multiplies all of its queries alike; None where it always does."""
    if getattr(config, "attn_temperature_tuning", False):
        return int(config.floor_scale) - 1
    rope = getattr(config, "rope_parameters", None)
    if isinstance(rope, dict) and rope.get("llama_4_scaling_beta"):
        return int(rope["original_max_position_embeddings"])
    return None


def _apart(here: Tensor, there: Tensor) -> float:
    """The largest difference of a token in the middle of all, of the largest number."""
    return ((here - there).double().abs().amax((0, 1, 3)).median() / here.double().abs().max()).item()


def _most(tensor: Tensor) -> float:
    return MOST.get(tensor.dtype, COARSE)
