"""KVzip+ (arXiv 2601.07891; kvpress' KVzipPress by `kvzip_plus_normalization`): what an entry writes counts too.

KVzip's weights times the length of what the entry's value writes into the hidden states through a query head's output
projection, divided by the length of the hidden states that the row's attention was given.
"""

from dataclasses import dataclass

from methods.kvzip import KVzip
from pvcbench.policy import torch


@dataclass(frozen=True)
class KVzipPlus(KVzip):
    """KVzip in everything but what a weight counts."""

    needs_output = True
    needs_hidden = True

    def by_rows(self, seen, weights, first, after):
        return weights / seen.hidden[:, first:after].to(weights).norm(dim=-1)[:, None, :, None]

    def by_values(self, seen, highest):
        values = seen.values.to(highest)
        matrices = seen.output().to(highest)
        found = []
        for head, matrix in enumerate(matrices):
            own = values[:, head * values.shape[1] // len(matrices)]
            found.append(((own @ (matrix @ matrix.T)) * own).sum(-1).clamp(min=0).sqrt())  # |v W| without writing v W
        return highest * torch.stack(found, 1)
