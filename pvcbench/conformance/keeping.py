"""What a method keeps of a case, by the engine's own observer, selection and evictor.

Each entry gets a level. Where entries are worth the same at the edge of what is kept, which of them stay is a matter of
sorting: such entries are told apart from those that must stay and those that must not.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
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
DRAWS = ((11, 14), (2**40 + 5, 977))  # of two samples, twice: what differs between them is left out
NEAR = {"rtol": 1e-9, "atol": 1e-12}  # how far apart scores may lie that differ by rounding alone
ASKED = set(  # of what a method declares or answers, all that a prompt alone has or leaves
    """positions decodes protocols watches_decoding channels needs_queries needs_rows needs_plain_keys needs_output
    files own_budget ragged_batch steady resolve row_weights protects scores plan notes accumulate drop
    reference reads prunes survivors validate""".split()
)
Levels = UInt8[Tensor, "layers batch kv_heads tokens"]


def covered(method: Method) -> str | None:
    """Why the cases cannot tell what a method keeps; None where they can, but for what its draws decide."""
    if method.reference or method.own_budget is not None:
        return "they take no budget"
    if method.prunes:
        return "they drop tokens between the layers of a whole model"
    if method.reads is not None:
        return "they look at what follows the prompt"
    if method.unnamed:
        return "they read a file of a model"
    unasked = [name for name in asks(method) if name not in ASKED]
    if unasked:
        return f"no case asks or answers {unasked[0]}"
    inner = (covered(value) for value in vars(method).values() if isinstance(value, Method))
    return next((why for why in inner if why is not None), None)


def asks(method: Method) -> list[str]:
    """What a method declares or answers in its own way, of all that `Method` knows; a need that it has not is none."""
    own = {name for kind in type(method).__mro__[: type(method).__mro__.index(Method)] for name in vars(kind)}
    named = sorted(name for name in own & vars(Method).keys() if not name.startswith("_"))
    return [name for name in named if not name.startswith("needs_") or getattr(method, name)]


def levels(methods: Mapping[str, Method], case: Case) -> dict[str, Levels]:
    """The level of every entry by `budget_B/NAME`, where the budget is within a method's reach and no draw matters."""
    found, *others = (_levels(methods, case, torch.tensor(draws)) for draws in DRAWS)
    return {name: own for name, own in found.items() if all(torch.equal(own, other[name]) for other in others)}


def _levels(methods, case, draws):
    shape = Shape(case.tokens, len(case.keys), tuple(range(len(case.keys))))
    resolved = {}
    for budget in case.budgets:
        for name, method in methods.items():
            with suppress(OutOfReach):
                resolved[budget, name] = answers.ask(method, "resolve", budget, shape)
    prefill, found = observed(list(dict.fromkeys(resolved.values())), case, shape, draws[: case.keys.shape[1]]), {}
    for (budget, name), method in resolved.items():
        with suppress(OutOfReach):
            found[f"budget_{budget}/{name}"] = _of_cell(prefill, Cell("case", method, budget))
    return found


def _of_cell(prefill, cell):
    """The levels of all layers at one budget."""
    choices, (first, last) = kept_indices(prefill, cell), answers.protected(cell.method, cell.budget, prefill.shape)
    parts = []
    for layer, (index, real, _) in enumerate(choices):
        known = prefill.layers[layer]
        seen = prefill.observer.observation(layer, known.keys, known.values, known.positions, 0)
        worth = protect(prefill.observer.scores[cell.method][layer], seen, first, last)
        parts.append(leveled(worth.double(), torch.zeros_like(worth, dtype=torch.bool).scatter(-1, index, real)))
    return torch.stack(parts)


def leveled(worth: Float[Tensor, "batch kv_heads tokens"], kept: Tensor) -> Tensor:
    """The levels of one layer."""
    lowest = worth.masked_fill(~kept, float("inf")).amin(-1, keepdim=True)
    highest = worth.masked_fill(kept, float("-inf")).amax(-1, keepdim=True)
    tied = torch.isclose(lowest, highest, **NEAR) & torch.isfinite(lowest)
    edge = tied & (torch.isclose(worth, lowest, **NEAR) | torch.isclose(worth, highest, **NEAR))
    level = torch.where(kept, KEPT, DROPPED)
    return torch.where(edge, torch.where(kept, KEPT_TIED, DROPPED_TIED), level).to(torch.uint8)


def observed(methods: Sequence[Method], case: Case, shape: Shape, draws: Tensor) -> Prefill:
    """A case as a prefill that these methods have watched."""
    observer = Observer(methods, shape, draws, "reference")
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
        seen = replace(seen, plain_keys=partial(case.plain_keys[layer].clone), output=partial(projections, case, layer))
        observer.finish(seen, None)
        layers.append(PromptLayer(key, value, positions))
    layout = Layout({layer: layer for layer in range(shape.layers)}, [None] * shape.layers, {}, shape.layers)
    logits, rules = torch.zeros(case.keys.shape[1], 1), [rule] * shape.layers
    known = [], observer, None, 0.0, [], rules, case.tokens, layout, {}
    return Prefill(shape, [None] * shape.layers, layers, logits, *known)


def projections(case: Case, layer: int) -> Float[Tensor, "heads dim hidden"]:
    """What each query head's values are multiplied by to be written into the hidden states."""
    return case.output[layer].mT.unflatten(0, (case.queries.shape[2], -1))


def ahead_of(case: Case) -> Callable[[int], Tensor]:
    """The mean rotation of so many positions after the prompt, as a matrix for row vectors."""
    unit = torch.eye(case.keys.shape[-1], dtype=torch.float64)

    def ahead(count: int) -> Tensor:
        places = torch.arange(case.tokens, case.tokens + count)
        rows = [turned(one.expand(count, -1), places).mean(0) for one in unit]
        return torch.stack(rows)

    return ahead
