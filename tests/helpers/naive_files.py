"""Methods that read a file once more, from their descriptions, with lists and loops in float64."""

import math
from itertools import pairwise

from naive import Tie
from naive_scores import capped


def products(keys: list[list[float]], stored: list[float]) -> dict[int, float]:
    """Q-Filters: the negative product of each key with the stored filter."""
    return {j: -math.fsum(a * b for a, b in zip(key, stored, strict=True)) for j, key in enumerate(keys)}


def streaming_sizes(needed: list[list[float]], budget: int, tokens: int, least: int) -> list[list[int]]:
    """DuoAttention: entries of each head; those that need the middle least lose it, until the mean is the budget."""
    sizes = [[tokens] * len(row) for row in needed]
    order = sorted(
        (min(1.0, max(0.0, value)), layer, head) for layer, row in enumerate(needed) for head, value in enumerate(row)
    )
    surplus = len(order) * max(0, tokens - budget)
    for _, layer, head in order:
        lost = min(surplus, max(0, tokens - least))
        sizes[layer][head] -= lost
        surplus -= lost
    return sizes


def importance_sizes(
    told: dict[str, list[float]], sizes: tuple[int, int, int], asked: tuple, beta: float, power: float
):
    """HeadKV: entries of each KV head beside the window, by layer; `sizes` are layers, heads, KV heads.

    `asked` is the budget and the tokens, both without the window.
    """
    (layers, heads, kv_heads), (beside, most) = sizes, asked
    means = [
        [sum(told[f"{layer}-{head}"]) / len(told[f"{layer}-{head}"]) for head in range(heads)]
        for layer in range(layers)
    ]
    whole = math.fsum(map(math.fsum, means))
    powers = [[(mean / whole) ** power for mean in row] for row in means]
    whole = math.fsum(map(math.fsum, powers))
    pool = math.floor(beside / beta)
    capacity = [[one / whole * pool * layers * heads + beside - pool for one in row] for row in powers]
    group = heads // kv_heads
    shares = [math.fsum(row[g * group : (g + 1) * group]) / group for row in capacity for g in range(kv_heads)]
    shares = capped(shares, layers * kv_heads * beside, most)
    sums = [math.fsum(shares[: place + 1]) for place in range(len(shares))]
    if any(abs(one % 1 - 0.5) < 1e-6 for one in sums):
        raise Tie
    ends = [0, *map(round, sums)]
    flat = [after - before for before, after in pairwise(ends)]
    return [flat[layer * kv_heads : (layer + 1) * kv_heads] for layer in range(layers)]
