"""The inputs of the cases: random layers with grouped queries, in float64, the same in every process."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

VERSION = 1  # raised when any number of a case changes
LAYERS, BASE = 2, 10000.0  # layers of every case; the base of the rotary embedding
HEADS = ((4, 2), (4, 4), (4, 1), (6, 2))  # query heads and KV heads, in turn
SHORT = 16  # cases of about a hundred tokens
LONG = (276, 300, 324, 388)  # tokens of the cases after them, which methods with long partitions need
COUNT = SHORT + len(LONG)
SHARES = (0.42, 0.76)  # budgets of a case, of its tokens


@dataclass(frozen=True)
class Case:
    """A prompt of some samples in some layers, and the budgets that are asked of it: entries per KV head, on average.

    Queries and keys are after rotary embedding (dimension i turns with dimension i + dim/2, base 10,000, positions
    from 0); `plain_queries` and `plain_keys` are the same before it. `output` is each layer's o_proj.weight.
    """

    name: str
    queries: Float[Tensor, "layers batch heads tokens dim"]
    keys: Float[Tensor, "layers batch kv_heads tokens dim"]
    values: Float[Tensor, "layers batch kv_heads tokens dim"]
    plain_queries: Float[Tensor, "layers batch heads tokens dim"]
    plain_keys: Float[Tensor, "layers batch kv_heads tokens dim"]
    output: Float[Tensor, "layers hidden inner"]
    budgets: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Tokens of each sample."""
        return self.keys.shape[3]

    def tensors(self) -> dict[str, Tensor]:
        """What a file holds of it."""
        names = ("queries", "keys", "values", "plain_queries", "plain_keys", "output")
        return {f"{self.name}/{name}": getattr(self, name).contiguous() for name in names}


def cases() -> Iterator[Case]:
    """Twenty cases: sixteen of about a hundred tokens, every fourth of them two samples, and four long ones."""
    for number in range(SHORT):
        heads, kv_heads = HEADS[number % 4]
        yield case(number, 88 + 2 * number, 2 if number % 4 == 1 else 1, heads, kv_heads, 4 + 2 * (number % 5 == 0))
    for number, tokens in enumerate(LONG, start=SHORT):
        yield case(number, tokens, 1, 2, 1, 4)


def case(number: int, tokens: int, batch: int, heads: int, kv_heads: int, dim: int) -> Case:
    """One case, by its number and sizes alone; products of its queries and keys vary enough for uneven attention."""
    generator = torch.Generator().manual_seed(7919 * VERSION + number)

    def drawn(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    plain_queries = 1.5 * drawn(LAYERS, batch, heads, tokens, dim)
    plain_keys = 1.5 * drawn(LAYERS, batch, kv_heads, tokens, dim)
    plain_keys[:, :, :, 0] *= 3  # a first token that stands out, as in real models
    return Case(
        name=f"case_{number:02d}",
        queries=turned(plain_queries, torch.arange(tokens)),
        keys=turned(plain_keys, torch.arange(tokens)),
        values=drawn(LAYERS, batch, kv_heads, tokens, dim),
        plain_queries=plain_queries,
        plain_keys=plain_keys,
        output=drawn(LAYERS, heads * dim, heads * dim),
        budgets=tuple(int(share * tokens) for share in SHARES),
    )


def turned(vectors: Float[Tensor, "*batch tokens dim"], positions: Tensor) -> Float[Tensor, "*batch tokens dim"]:
    """Vectors after rotary embedding at these positions."""
    half = vectors.shape[-1] // 2
    frequencies = BASE ** -(torch.arange(half, dtype=torch.float64) / half)
    angles = positions[:, None].double() * frequencies
    cos, sin, (first, second) = angles.cos(), angles.sin(), vectors.split(half, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
