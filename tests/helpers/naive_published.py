"""LagKV, ChunkKV, CurDKV, SimLayerKV, Compactor, CAKE, Scissorhands once more, from their descriptions, in float64.

As in naive_scores: lists and loops over what the dense model attends with and what its cache holds; the earlier of two
equal scores comes first, and scores that differ by rounding alone raise Tie.
"""

import math
from itertools import pairwise

import torch

from naive import Tie


def close(one: float, other: float) -> bool:
    """Whether two numbers differ by rounding alone."""
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)


def deviation(numbers: list[float]) -> float:
    """The sample's standard deviation."""
    mean = math.fsum(numbers) / len(numbers)
    return math.sqrt(math.fsum((x - mean) ** 2 for x in numbers) / (len(numbers) - 1))


def softmax(numbers: list[float]) -> list[float]:
    """Exponentials that sum to 1."""
    top = max(numbers)
    powers = [math.exp(x - top) for x in numbers]
    return [x / math.fsum(powers) for x in powers]


def lagkv(keys: list[list[float]], values: list[list[float]], sinks: int, lag: int) -> tuple[dict, set[int]]:
    """Ranks of the entries that compete, and the entries that stay; below two partitions the newest are best."""
    tokens = len(keys)
    parts = (tokens - sinks) // lag
    if tokens < sinks + 2 * lag:
        return {j: float(j) for j in range(sinks, tokens)}, set(range(min(sinks, tokens)))
    found = {}
    for part in range(parts - 1):
        own = range(sinks + part * lag, sinks + (part + 1) * lag)
        after = range(own.stop, own.stop + lag)
        worth = [0.0] * lag
        for vectors in (keys, values):
            low = [min(vectors[j][c] for j in after) for c in range(len(vectors[0]))]
            high = [max(vectors[j][c] for j in after) for c in range(len(vectors[0]))]
            scaled = [
                [(x - a) / (b - a) if b > a else 0.0 for x, a, b in zip(vectors[j], low, high, strict=True)]
                for j in own
            ]
            worth = [a + b for a, b in zip(worth, softmax([deviation(row) for row in scaled]), strict=True)]
        order = sorted(range(lag), key=lambda place: worth[place])
        if any(close(worth[one], worth[other]) for one, other in pairwise(order)):
            raise Tie
        found |= {own[place]: rank / lag for rank, place in enumerate(order)}
    return found, set(range(sinks)) | set(range(sinks + (parts - 1) * lag, tokens))


def chunked(scores: list[dict[int, float]], chunk: int) -> dict[int, float]:
    """Each token's score is its chunk's mean of the scores summed over heads."""
    summed = {j: math.fsum(own[j] for own in scores) for j in scores[0]}
    places, found = sorted(summed), {}
    for start in range(0, len(places), chunk):
        own = places[start : start + chunk]
        found |= dict.fromkeys(own, math.fsum(summed[j] for j in own) / len(own))
    return found


def curdkv(keys: list[list[float]], values: list[list[float]], block: int) -> list[float]:
    """Squared norms as shares of their block's sum, those of keys times those of values."""
    found = []
    for start in range(0, len(keys), block):
        shares = []
        for vectors in (keys, values):
            squares = [math.fsum(x * x for x in vector) for vector in vectors[start : start + block]]
            shares.append([square / math.fsum(squares) for square in squares])
        found += [a * b for a, b in zip(*shares, strict=True)]
    return found


def laziness(attention: torch.Tensor, sinks: int, recent: int) -> float:
    """The newest row's attention to the first and last tokens, mean over heads; attention is [heads, rows, keys]."""
    tokens = attention.shape[-1]
    near = {*range(min(sinks, tokens)), *range(max(0, tokens - recent), tokens)}
    return math.fsum(row[j] for row in attention[:, -1].tolist() for j in near) / len(attention)


def cut_layers(lazy: list[float], budget: int, tokens: int, least: int) -> list[int]:
    """Sizes of the layers: the laziest lose what they can until the mean is the budget."""
    order = sorted(range(len(lazy)), key=lambda layer: -lazy[layer])
    if any(close(lazy[one], lazy[other]) for one, other in pairwise(order)):
        raise Tie
    surplus, sizes = len(lazy) * max(0, tokens - budget), [tokens] * len(lazy)
    for layer in order:
        lost = min(surplus, tokens - min(least, tokens))
        sizes[layer], surplus = tokens - lost, surplus - lost
    return sizes


def leverage(keys: torch.Tensor, sketch: torch.Tensor, jitter: float) -> list[float]:
    """diag X (X'X + jitter I)^-1 X' of one head's keys before rotary embedding, [entries, dim]."""
    centred = (keys - keys.mean(0)) @ sketch
    inverse = torch.linalg.inv(centred.T @ centred + jitter * torch.eye(centred.shape[1], dtype=keys.dtype))
    return [float(row @ inverse @ row) for row in centred]


def received(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, chunk: int) -> list[float]:
    """Column sums of unscaled attention within chunks, later keys included, for one KV head.

    Queries are [heads of its group, entries, dim]. Mean over heads, times the value's norm, mean of three neighbours
    with zeros beyond the ends.
    """
    tokens, sums = len(keys), [0.0] * len(keys)
    for head in queries:
        for row in range(tokens):
            start = row // chunk * chunk
            end = min(start + chunk, tokens)
            weights = softmax([float(head[row] @ keys[j]) for j in range(start, end)])
            for j, weight in zip(range(start, end), weights, strict=True):
                sums[j] += weight / len(queries)
    worth = [0.0, *(x * float(value.norm()) for x, value in zip(sums, values, strict=True)), 0.0]
    return [math.fsum(worth[j : j + 3]) / 3 for j in range(tokens)]


def standard(heads: list[list[float]]) -> list[list[float]]:
    """Mean 0 and deviation 1 over all heads and entries."""
    pool = [x for own in heads for x in own]
    mean, spread = math.fsum(pool) / len(pool), deviation(pool)
    return [[(x - mean) / spread for x in own] for own in heads]


def cake(attention: torch.Tensor, kv_heads: int, window: int, kernel: int, gamma: float) -> list[dict[int, float]]:
    """Scores of the tokens before the window for each KV head; attention is [heads, rows, keys] of one sample."""
    older, group, reach = attention.shape[-1] - window, len(attention) // kv_heads, kernel // 2
    found = []
    for head in range(kv_heads):
        total = [0.0] * older
        for query_head in range(head * group, (head + 1) * group):
            columns = attention[query_head, -window:, :older].T.tolist()
            worth = [math.fsum(one) / window + gamma * deviation(one) ** 2 for one in columns]
            for j in range(older):
                total[j] += math.fsum(worth[max(0, j - reach) : j + reach + 1]) / kernel / group
        found.append(dict(enumerate(total)))
    return found


def cake_preference(attention: torch.Tensor, window: int, tau1: float, tau2: float) -> float:
    """H^(1/tau1) V^(1/tau2) of one layer."""
    older = attention.shape[-1] - window
    seen = attention[:, -window:, :older].tolist()
    entropy = -math.fsum(a * math.log(a + 1e-10) for head in seen for row in head for a in row)
    variance = math.fsum(deviation(list(one)) ** 2 for head in seen for one in zip(*head, strict=True))
    return entropy ** (1 / tau1) * variance ** (1 / tau2)


def cake_sizes(preferences: list[float], total: int, most: int) -> list[int]:
    """Truncated shares; what is beyond `most` in equal parts to the others, the rest one by one from the first."""
    shares = [total * one / math.fsum(preferences) for one in preferences]
    if any(abs(share - round(share)) < 1e-6 for share in shares):
        raise Tie
    sizes = [math.floor(share) for share in shares]
    missing = total - sum(sizes)

    def hand_out(count):
        open_layers = [layer for layer, size in enumerate(sizes) if size < most]
        for number in range(count if open_layers else 0):
            sizes[open_layers[number % len(open_layers)]] += 1

    while any(size > most for size in sizes):
        excess = sum(size - most for size in sizes if size > most)
        sizes = [min(size, most) for size in sizes]
        hand_out(excess)
    hand_out(missing)
    return sizes


def scissorhands(attention: torch.Tensor, kv_heads: int, history: int) -> list[dict[int, float]]:
    """How many of the last rows gave each entry 1/t or more, summed over the query heads of each KV head."""
    heads, tokens, _ = attention.shape
    found = [dict.fromkeys(range(tokens), 0.0) for _ in range(kv_heads)]
    for query_head, rows in enumerate(attention.tolist()):
        for number in range(max(0, tokens - history), tokens):
            for j in range(number + 1):
                if number and abs(rows[number][j] * (number + 1) - 1) < 1e-9:
                    raise Tie
                even = number == 0 or rows[number][j] > 1 / (number + 1)
                found[query_head * kv_heads // heads][j] += even
    return found
