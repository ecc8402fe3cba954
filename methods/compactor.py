"""Compactor (Chari & Van Durme 2025, arXiv 2507.08143), as kvpress runs it: odd keys that tokens around look at.

Leverage of the keys and non-causal attention of the tokens between the first and the last, each with mean 0 and
deviation 1 over a layer's heads and entries of a sample, are added, leverage times `blending`. Knows no question.
"""

from dataclasses import dataclass, replace

from methods.leverage_score import leverage, sketching
from methods.non_causal_attention import NonCausalAttention, received
from pvcbench.policy import Method, OutOfReach, UserError, torch


@dataclass(frozen=True)
class Compactor(Method):
    """`first` and `last` tokens stay and are left out of both scores; `blending` null: the share that is removed."""

    first: int = 8
    last: int = 4
    sketch: int = 48
    jitter: float = 0.01
    chunk: int = 256
    blending: float | None = None
    needs_rows = NonCausalAttention.needs_rows
    needs_plain_keys = True
    decodes = ("grow",)
    protocols = ("generate", "continuation")

    def __post_init__(self):
        if min(self.first, self.last) < 0 or min(self.sketch, self.chunk) < 1 or self.jitter <= 0:
            raise UserError("compactor: first, last must be 0 or more, sketch, chunk 1 or more, jitter above 0")

    def resolve(self, budget, shape):
        if budget < self.first + self.last and budget < shape.tokens:
            raise OutOfReach(f"below the {self.first + self.last} first and last entries that Compactor always keeps")
        return self if self.blending is not None else replace(self, blending=max(0.0, 1 - budget / shape.tokens))

    def protects(self, budget, shape):
        first = min(self.first, shape.tokens)
        return first, min(self.last, shape.tokens - first)

    def scores(self, seen):
        scores = torch.zeros_like(seen.positions, dtype=torch.float64)
        first, last = self.protects(None, seen.shape)
        inner = slice(first, scores.shape[-1] - last)
        query, keys, values = (part[:, :, inner] for part in (seen.rows.query, seen.keys, seen.values))
        if keys.shape[2] > 1:
            odd = leverage(seen.plain_keys()[:, :, inner], sketching(seen, self.sketch), self.jitter)
            scores[..., inner] = self.blending * standard(odd) + standard(received(query, keys, values, self.chunk))
        return scores


def standard(scores):
    """Scores of each sample with mean 0 and deviation 1 over its heads and entries."""
    scores = scores.double()
    return (scores - scores.mean((1, 2), keepdim=True)) / scores.std((1, 2), keepdim=True).clamp(min=1e-6)
