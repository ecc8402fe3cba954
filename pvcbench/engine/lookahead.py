"""A prefill whose methods look at tokens after the prompt: for leaking references, never for a method to be used.

The prompt and what follows are prefilled together, the rows of the last tokens are observed, and all that lies after
the prompt is forgotten: its entries, its scores and the logits. What is left is the prompt's own prefill.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from pvcbench.engine.prefill import Prefill, PromptLayer
from pvcbench.policy import Method


def foresee(
    engine,
    ids: Int[Tensor, "batch tokens"],
    following: Int[Tensor, "batch later"],
    watched: int,
    methods: Sequence[Method],
    draws: Int[Tensor, " batch"] | None = None,
    reach: int = 0,
) -> Prefill:
    """The prefill of `ids` as if the methods had seen what follows; `watched` of the last tokens count as future."""
    tokens, start, own = ids.shape[1], 0, engine.shape(ids.shape[1])
    last = []

    def watch(logits):
        nonlocal start
        if start < tokens <= start + logits.shape[1]:
            last.append(logits[:, tokens - 1 - start].clone())
        start += logits.shape[1]

    whole = torch.cat((ids, following), 1)
    shape = replace(own, tokens=whole.shape[1], future=watched)
    prefill = engine.prefill(whole, methods, draws=draws, shape=shape, watch=watch, reach=reach or tokens)
    observer = prefill.observer
    observer.shape = own
    for known, axis in ((observer.scores, -1), (observer.totals, 2)):
        for parts in known.values():
            parts[:] = [None if part is None else part.narrow(axis, 0, tokens) for part in parts]
    layers = [
        PromptLayer(layer.keys[:, :, :tokens], layer.values[:, :, :tokens], layer.positions[:, :tokens])
        for layer in prefill.layers
    ]
    states = engine.prefill(ids).states if prefill.states else {}  # of the prompt alone: a state cannot be cut back
    return replace(prefill, shape=own, layers=layers, logits=last[0], states=states, newest={})  # rows of the future
