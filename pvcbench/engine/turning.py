"""How the keys and queries of each layer turn with their positions, found by moving the same tokens to other positions.

Tokens that stand elsewhere have the same hidden states in a model whose only position embedding is a rotary one, so
their keys and queries differ by rotation alone. No model is asked for its name.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pvcbench.engine.layout import attentions
from pvcbench.engine.prefill import Prefill
from pvcbench.engine.rotary import Turn, gains_of, moved_by

TOKENS, SHIFT = 28, 9
MOST = {torch.float64: 1e-8, torch.float32: 1e-2}  # of the largest number; what is turned otherwise is off by about 1
COARSE = 0.1  # the same for dtypes of sixteen bits
ADVICE = ": set methods.<name>.positions=original"
NOT_KNOWN = "positions=cache does not fit this model's rotary embeddings" + ADVICE
NO_TABLES = (
    "positions=cache needs rotary embeddings whose tables the model hands to its layers, and the keys of this one "
    "depend on their positions in another way" + ADVICE
)
ADDED = "positions=cache needs rotary embeddings, and this model adds its positions to the hidden states" + ADVICE
NORMED = (
    "positions=cache does not fit this model: it norms its keys after their rotation, so its attention depends on the "
    "positions themselves and not on distances alone" + ADVICE
)


@dataclass(frozen=True)
class Turns:
    """How the keys of a layer turn, and how its queries do."""

    keys: Turn
    queries: Turn


def turns_of(layers: nn.ModuleList, here: Prefill, there: Prefill, shift: int) -> list[Turns | str]:
    """For each layer that holds entries how it turns, or why its entries cannot be moved.

    `here` and `there` are prefills of the same tokens, the second at positions that lie `shift` higher, that have
    captured all queries.
    """
    if _apart(here.layers[0].values, there.layers[0].values) > _most(here.layers[0].values):
        return [ADDED] * len(here.layers)
    found = []
    for number, place in enumerate(here.layout.places):
        parts = [(prefill.layers[number].keys, prefill.queries[number]) for prefill in (here, there)]
        table = here.rotary[number]
        gains = [gain for module in attentions(layers[place]) for gain in gains_of(module, parts[0][0])]
        keys, queries = (moved_by(*pair, shift, table, gains, _most(pair[0])) for pair in zip(*parts, strict=True))
        if keys is not None and keys.gain is not None:
            found.append(NORMED)
        elif keys is None or queries is None or keys.form is not queries.form:
            found.append(NO_TABLES if table is None else NOT_KNOWN)
        else:
            found.append(Turns(keys, queries))
    return found


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
