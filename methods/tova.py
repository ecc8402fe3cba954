"""TOVA (Oren et al. 2024, arXiv 2401.06104; code schwartz-lab-NLP/TOVA): token omission via attention.

The newest query's attention, averaged over the heads of a layer, ranks its entries; one set serves all heads. Nothing
is protected, the newest token included (kvpress protects it). Under hold the lowest goes in every step.
"""

from dataclasses import dataclass

from pvcbench.policy import Method, torch


@dataclass(frozen=True)
class TOVA(Method):
    """Keeps what the newest token attends to."""

    watches_decoding = True

    def row_weights(self, shape, layer):
        return torch.ones(1, dtype=torch.float64)

    def scores(self, seen):
        return seen.mass.mean(1, keepdim=True).expand(seen.positions.shape)
