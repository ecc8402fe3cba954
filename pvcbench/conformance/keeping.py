"""What a method keeps of a case, by the engine's own observer, selection and evictor.

Each entry gets a level. Where entries are worth the same at the edge of what is kept, which of them stay is a matter of
sorting: such entries are told apart from those that must stay and those that must not.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pvcbench.conformance.cases import Case, turned
from pvcbench.engine import answers
from pvcbench.engine.attention import Rule, prompt_attention
from pvcbench.engine.evict import Cell, kept_indices
from pvcbench.engine.layout import Layout
from pvcbench.engine.observer import Observer
from pvcbench.engine.prefill import Prefill, PromptLayer
from pvcbench.engine.query_rows import Rows
from pvcbench.errors import OutOfReach
from pvcbench.policy import Method, Shape, protect

DROPPED, KEPT, KEPT_TIED, DROPPED_TIED = 0, 1, 2, 3  # levels; of the tied, as many stay as are KEPT_TIED
NEAR = {"rtol": 1e-9, "atol": 1e-12}  # how far apart scores may lie that differ by rounding alone
Levels = UInt8[Tensor, "layers batch kv_heads tokens"]


def covered(method: Method) -> str | None:
    """Why the cases cannot tell what a method keeps; None where they can, but for what its draws decide."""
    if method.reference or method.own_budget is not None:
        return "it takes no budget"
    if method.prunes:
        return "it drops tokens between the layers of a whole model"
    if method.reads is not None:
        return "it looks at what follows the prompt"
    if method.unnamed:
        return "it reads a file of a model"
    return None


def levels(method: Method, case: Case, budget: int) -> Levels | None:
    """The level of every entry; None where the budget is out of the method's reach, or where its random draws matter."""
    found = [_levels(method, case, budget, torch.tensor([seed, seed + 3])) for seed in (11, 2**40 + 5, 977)]
    if found[0] is None or any(not torch.equal(found[0], other) for other in found[1:]):
        return None
    return found[0]


def _levels(method, case, budget, draws):
    shape = Shape(case.tokens, len(case.keys), tuple(range(len(case.keys))))
    try:
        method = answers.ask(method, "resolve", budget, shape)
        prefill = observed(method, case, shape, draws[: case.keys.shape[1]])
        choices = kept_indices(prefill, Cell("case", method, budget))
        first, last = answers.protected(method, budget, shape)
    except OutOfReach:
        return None
    parts = []
    for layer, (index, real, _) in enumerate(choices):
        seen = prefill.observer.observation(layer, *stored(prefill, layer), 0)
        worth = protect(prefill.observer.scores[method][layer], seen, first, last)
        kept = torch.zeros_like(worth, dtype=torch.bool).scatter(-1, index, real)
        parts.append(leveled(worth.double(), kept))
    return torch.stack(parts)


def stored(prefill: Prefill, layer: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, values and positions of a layer."""
    known = prefill.layers[layer]
    return known.keys, known.values, known.positions


def leveled(worth: Float[Tensor, "batch kv_heads tokens"], kept: Tensor) -> Tensor:
    """The levels of one layer."""
    lowest = worth.masked_fill(~kept, float("inf")).amin(-1, keepdim=True)
    highest = worth.masked_fill(kept, float("-inf")).amax(-1, keepdim=True)
    tied = torch.isclose(lowest, highest, **NEAR) & torch.isfinite(lowest)
    edge = tied & (torch.isclose(worth, lowest, **NEAR) | torch.isclose(worth, highest, **NEAR))
    level = torch.where(kept, KEPT, DROPPED)
    return torch.where(edge, torch.where(kept, KEPT_TIED, DROPPED_TIED), level).to(torch.uint8)


def observed(method: Method, case: Case, shape: Shape, draws: Tensor) -> Prefill:
    """A case as a prefill that one method has watched."""
    observer = Observer([method], shape, draws, "reference")
    positions = torch.arange(case.tokens).expand(case.keys.shape[1], -1)
    rule = Rule(case.keys.shape[-1] ** -0.5)
    layers = []
    for layer in range(shape.layers):
        query, key, value = case.queries[layer], case.keys[layer], case.values[layer]

        def plain(rows, count, lse=False, key=key, value=value):
            return prompt_attention(rows, key[:, :, :count], value[:, :, :count], rule)

        observer.attend(layer, query, key, value, rule, 0, plain)
        seen = observer.observation(layer, key, value, positions, case.tokens)
        seen = replace(seen, rows=Rows(layer, query, key, value, positions, rule, None))
        seen = replace(seen, queries=case.plain_queries[layer], ahead=ahead_of(case))
        seen = replace(seen, plain_keys=partial(case.plain_keys[layer].clone))
        observer.finish(seen, None)
        layers.append(PromptLayer(key, value, positions))
    layout = Layout({layer: layer for layer in range(shape.layers)}, [None] * shape.layers, {}, shape.layers)
    logits, rules = torch.zeros(case.keys.shape[1], 1), [rule] * shape.layers
    known = [], observer, None, 0.0, [], rules, case.tokens, layout, {}
    return Prefill(shape, [None] * shape.layers, layers, logits, *known)


def ahead_of(case: Case) -> Callable[[int], Tensor]:
    """The mean rotation of so many positions after the prompt, as a matrix for row vectors."""
    unit = torch.eye(case.keys.shape[-1], dtype=torch.float64)

    def ahead(count: int) -> Tensor:
        places = torch.arange(case.tokens, case.tokens + count)
        rows = [turned(one.expand(count, -1), places).mean(0) for one in unit]
        return torch.stack(rows)

    return ahead
