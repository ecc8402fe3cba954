"""The queries of a model on some texts, layer by layer, as the engine's methods see them."""

import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pvcbench.engine.engine import Engine
from pvcbench.errors import UserError
from pvcbench.models.loaded import LoadedModel
from pvcbench.policy import Method, Observation

Take = Callable[[int, int, Tensor, int], None]  # text, layer, queries [heads, tokens, dim], KV heads


class Watch(Method):
    """Hands the queries of every layer to a function, after rotary embedding or before it; it ranks nothing."""

    def __init__(self, take: Callable[[int, Tensor, int], None], rotated: bool):
        self.take, self.needs_queries = take, not rotated
        self.needs_rows = sys.maxsize if rotated else 0

    def scores(self, seen: Observation) -> Tensor:
        """The order of positions, since the engine asks for scores."""
        queries = seen.queries if self.needs_queries else seen.rows.query
        if queries.shape[-1] != seen.keys.shape[-1]:
            raise UserError(
                f"layer {seen.layer} has queries of {queries.shape[-1]} numbers and keys of {seen.keys.shape[-1]}, so "
                "this model has no statistics of queries that keys could be held against"
            )
        self.take(seen.layer, queries[0], seen.keys.shape[1])
        return seen.positions.double()


@torch.inference_mode()
def watch(
    loaded: LoadedModel, texts: Sequence[Sequence[int]], take: Take, rotated: bool, step: Callable[[], None]
) -> int:
    """Runs a model on each text by itself and shows `take` the queries of every layer; returns the layers.

    `step` is called after each text. Layers that slide are shown too.
    """
    engine = Engine(loaded.model, loaded.attention, evict_sliding=True)
    try:
        for number, ids in enumerate(texts):
            method = Watch(lambda layer, queries, heads, number=number: take(number, layer, queries, heads), rotated)
            engine.prefill(torch.tensor([list(ids)], device=engine.device), [method])
            step()
        return len(engine.windows)
    finally:
        engine.release()
