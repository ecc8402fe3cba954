"""Sampled tokens: temperature, then top-k, then top-p, and one number from each answer's own stream decides.

    choose = Sampled(Sampling(0.6, top_p=0.95), seeds=[1, 2])
    tokens = choose(logits, rows=[0, 1])

The tokens that are left are put in order, the most likely first, and a uniform number picks by their summed
probabilities. Answers with one stream are therefore alike where their logits are. All of it is computed in float64.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import torch
from jaxtyping import Float, Int
from torch import Tensor

Chooser = Callable[[Tensor, Sequence[int]], list[int]]


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn; `n` of them for each sample. `top_p` 1 and `top_k` None leave every token."""

    temperature: float
    top_p: float = 1.0
    top_k: int | None = None
    n: int = 1

    def left(
        self, logits: Float[Tensor, "rows vocabulary"]
    ) -> tuple[Float[Tensor, "rows left"], Int[Tensor, "rows left"]]:
        """Probabilities of the tokens that are left, in falling order, and these tokens; the rest is filled by zeros.

        Of equally likely tokens the one with the smaller number comes first, and only the last of them are cut off.
        """
        worth, size = logits.double() / self.temperature, logits.shape[-1]
        if self.top_k is not None:
            least = worth.topk(min(self.top_k, size)).values[:, -1:]
            worth = worth.masked_fill(worth < least, float("-inf"))
        mass = worth.softmax(-1)
        possible = mass > (1 - self.top_p) / size  # all others together weigh less than what top-p cuts off
        tokens = mass.topk(max(1, int(possible.sum(-1).max()))).indices.sort(dim=-1).values
        mass, order = mass.gather(-1, tokens).sort(dim=-1, descending=True, stable=True)
        if self.top_p < 1:
            mass = mass.masked_fill(mass.cumsum(-1) - mass >= self.top_p, 0.0)
        return mass / mass.sum(-1, keepdim=True), tokens.gather(-1, order)


class Sampled:
    """Chooses the next token of each row by the row's own stream of numbers, which its seed alone decides."""

    def __init__(self, sampling: Sampling, seeds: Sequence[int]):
        self.sampling, self.streams = sampling, [Random(seed) for seed in seeds]

    def __call__(self, logits: Float[Tensor, "now vocabulary"], rows: Sequence[int]) -> list[int]:
        """The tokens after these logits, which are of these rows."""
        mass, tokens = self.sampling.left(logits)
        drawn = torch.tensor([[self.streams[row].random()] for row in rows], dtype=mass.dtype, device=mass.device)
        sums = mass.cumsum(-1)
        last = (mass > 0).sum(-1, keepdim=True) - 1
        place = (sums <= drawn * sums[:, -1:]).sum(-1, keepdim=True).minimum(last).clamp(min=0)
        return tokens.gather(-1, place)[:, 0].tolist()


def greedy(logits: Float[Tensor, "now vocabulary"], rows: Sequence[int]) -> list[int]:
    """The most likely tokens."""
    return logits.argmax(-1).tolist()
