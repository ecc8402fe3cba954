"""Methods whose heads, samples or layers keep different numbers of entries."""

from dataclasses import dataclass

import torch

from pvcbench.policy import Method, Observation


@dataclass(frozen=True)
class Ragged(Method):
    """Keeps another number of entries in every layer, sample and head, around the budget."""

    watches_decoding = True
    channels = 1

    def row_weights(self, shape, layer):
        return torch.ones(shape.tokens, dtype=torch.float64)

    def protects(self, budget, shape):
        return 2, 3

    def accumulate(self, seen: Observation):
        received = seen.grouped_mass().double()[..., None]
        return received if seen.totals is None else seen.totals + received

    def scores(self, seen):
        return seen.totals[..., 0]

    def plan(self, scores, budget, shape):
        batch, heads, _ = scores[0].shape
        layer, row, head = (torch.arange(size) for size in (len(scores), batch, heads))
        return budget - 4 + 3 * (layer[:, None, None] - 1) + 2 * row[:, None] + 7 * (2 * head - heads + 1)


@dataclass(frozen=True)
class Pyramid(Ragged):
    """Keeps fewer entries the deeper the layer, equally many in all of its heads."""

    def plan(self, scores, budget, shape):
        batch, heads, _ = scores[0].shape
        return (budget + 4 - 4 * torch.arange(len(scores)))[:, None, None].expand(-1, batch, heads)
