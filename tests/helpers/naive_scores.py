"""SnapKV and its kin, TOVA, Knorm, KeyDiff once more, from their descriptions, with lists and loops in float64.

Attention and keys are plain nested lists of the dense model. Where scores are equal, the earlier position comes first,
as the cards say (pooling by maximum makes runs of equal scores); scores that differ by rounding alone raise Tie.
"""

import math
from fractions import Fraction

from naive import Tie


def best(scores: dict[int, float], count: int) -> set[int]:
    """The positions of the highest scores; the earlier of two equal ones."""
    ranked = sorted(scores, key=lambda position: (-scores[position], position))
    if 0 < count < len(ranked):
        last, after = scores[ranked[count - 1]], scores[ranked[count]]
        if last != after and math.isclose(last, after, rel_tol=1e-9, abs_tol=1e-12):
            raise Tie
    return set(ranked[:count])


def pooled(values: list[float], kernel: int, pooling: str) -> list[float]:
    """Each value with its neighbours: the largest, or the sum over the kernel's size (beyond the ends is nothing)."""
    reach, found = kernel // 2, []
    for place in range(len(values)):
        near = values[max(0, place - reach) : place + reach + 1]
        found.append(max(near) if pooling == "max" else math.fsum(near) / kernel)
    return found


def snapkv(attention, kv_heads: int, window: int, kernel: int, pooling: str) -> list[dict[int, float]]:
    """Scores of the tokens before the window, for each KV head; attention is [heads][rows][keys] of one sample."""
    heads, tokens = len(attention), len(attention[0])
    window, group, found = min(window, tokens), len(attention) // kv_heads, []
    for head in range(kv_heads):
        rows = []
        for query_head in range(head * group, (head + 1) * group):
            last = attention[query_head][tokens - window :]
            summed = [math.fsum(row[j] for row in last) for j in range(tokens - window)]
            rows.append(pooled(summed, kernel, pooling))
        found.append({j: math.fsum(row[j] for row in rows) / group for j in range(tokens - window)})
    assert heads == group * kv_heads
    return found


def with_window(scores: list[dict[int, float]], counts: list[int], tokens: int, window: int) -> list[set[int]]:
    """The best of each head and the window; `counts` includes the window."""
    window = min(window, tokens)
    newest = set(range(tokens - window, tokens))
    return [newest | best(own, count - window) for own, count in zip(scores, counts, strict=True)]


def pyramid(budget: int, tokens: int, window: int, beta: int, layers: int) -> list[int]:
    """Entries per layer, window included: a falling line with the budget as its mean, sums rounded half to even."""
    mean = budget - window
    if tokens < 2 * mean or budget >= tokens:
        return [budget] * layers
    most = min(2 * mean - mean // beta, tokens - window)
    least = 2 * mean - most
    line = [Fraction(most) - Fraction(layer * (most - least), layers - 1) for layer in range(layers)]
    sums = [round(sum(line[: layer + 1])) for layer in range(layers)]
    return [window + sums[layer] - (sums[layer - 1] if layer else 0) for layer in range(layers)]


def ada(scores: list[dict[int, float]], budget: int, window: int, tokens: int, floor: float) -> list[int]:
    """Entries per head, window included: the heads' shares of the layer's best, mixed with equal ones."""
    window = min(window, tokens)
    total = len(scores) * (budget - window)
    pool = sorted((-value, head, j) for head, own in enumerate(scores) for j, value in own.items())
    cut = pool[total - 1 : total + 1] if total < len(pool) else []
    if cut and cut[0][0] != cut[1][0] and math.isclose(cut[0][0], cut[1][0], rel_tol=1e-9, abs_tol=1e-12):
        raise Tie
    wins = [sum(1 for _, head, _ in pool[:total] if head == one) for one in range(len(scores))]
    shares = [(1 - floor) * won + floor * total / len(scores) for won in wins]
    counts = [math.floor(share) for share in shares]
    rest = [share - count for share, count in zip(shares, counts, strict=True)]
    order = sorted(range(len(scores)), key=lambda head: (-rest[head], head))
    for head in order[: total - sum(counts)]:
        counts[head] += 1
    return [window + count for count in counts]


def layer_entropies(layers: list[list[dict[int, float]]], temperature: float) -> list[float]:
    """Each layer's preference: the entropy of its heads' scores as shares, mean over heads, to 1 / temperature."""
    found = []
    for heads in layers:
        entropies = []
        for own in heads:
            shares = [value / sum(own.values()) for value in own.values()]
            entropies.append(-sum(share * math.log(share) for share in shares if share > 0))
        found.append((sum(entropies) / len(entropies)) ** (1 / temperature))
    return found


def capped(weights: list[float], total: float, most: int) -> list[float]:
    """The total in proportion to the weights, none above `most`: found by trying which of the largest are full."""
    order = sorted(range(len(weights)), key=lambda one: -weights[one])
    for number in range(len(weights) + 1):
        full, rest = order[:number], order[number:]
        unit = (total - most * number) / sum(weights[one] for one in rest) if rest else 0.0
        if not rest or weights[rest[0]] * unit <= most:
            return [float(most) if one in full else weights[one] * unit for one in range(len(weights))]
    raise AssertionError("unreachable")


class TOVA:
    """One layer of one sample: the newest row, averaged over all query heads, ranks what is there."""

    def __init__(self, budget: int, heads: int):
        self.budget, self.heads, self.there = budget, heads, set()

    def prefill(self, attention):
        """Attention is a tensor [heads, tokens, tokens]."""
        self.there = set(range(attention.shape[1]))
        self._evict(attention[:, -1])

    def step(self, rows, first_layer_entries=None):
        """Rows is [heads, new rows, tokens so far]."""
        self.there |= set(range(rows.shape[2] - rows.shape[1], rows.shape[2]))
        self._evict(rows[:, -1])

    def _evict(self, row):
        mean = row.mean(0).tolist()
        self.there = best({j: mean[j] for j in self.there}, self.budget)

    @property
    def kept(self):
        """The positions each KV head holds."""
        return [set(self.there) for _ in range(self.heads)]


def norm(vector) -> float:
    """The Euclidean length of a list of numbers."""
    return math.sqrt(math.fsum(x * x for x in vector))


def keydiff(keys: dict[int, list[float]]) -> dict[int, float]:
    """The negative cosine of each key with the mean of the unit keys."""
    unit = {j: [x / norm(key) for x in key] for j, key in keys.items()}
    anchor = [math.fsum(column) / len(unit) for column in zip(*unit.values(), strict=True)]
    return {j: -math.fsum(a * b for a, b in zip(key, anchor, strict=True)) / norm(anchor) for j, key in unit.items()}


def mean_rotation(frequencies, dim, first, count):
    """The mean of the rotations of so many positions, each written out as a matrix for column vectors."""
    import torch

    rotation = torch.zeros(dim, dim, dtype=torch.float64)
    for position in range(first, first + count):
        for pair, frequency in enumerate(frequencies.tolist()):
            cos, sin = math.cos(position * frequency), math.sin(position * frequency)
            one, other = pair, pair + len(frequencies)
            rotation[one, one] += cos / count
            rotation[other, other] += cos / count
            rotation[one, other] -= sin / count
            rotation[other, one] += sin / count
    for place in range(2 * len(frequencies), dim):
        rotation[place, place] = 1.0
    return rotation


def expected_attention(queries, keys, values, frequencies, horizon, sinks, covariance=True, value_norm=True):
    """Scores of the entries after the sinks for one KV head: queries are [heads of its group, tokens, dim] before RoPE.

    The rotation of each position to come is written out as a matrix and the matrices are averaged, as kvpress does.
    """
    import torch

    moments = [(own[sinks:].mean(0), torch.cov(own[sinks:].T, correction=0)) for own in queries]
    rotation = mean_rotation(frequencies, keys.shape[-1], keys.shape[0], horizon)
    return expected_of(moments, rotation, keys, values, sinks, covariance, value_norm)


def expected_of(moments, rotation, keys, values, sinks, covariance=True, value_norm=True):
    """The same by the mean and covariance of each query head of the group, which the rotation turns."""
    import torch

    dim, tokens = keys.shape[-1], keys.shape[0]
    total = torch.zeros(tokens - sinks, dtype=torch.float64)
    for mean, spread in moments:
        turned, wide = rotation @ mean, rotation @ spread @ rotation.T
        logits = [float(key @ turned) / math.sqrt(dim) for key in keys[sinks:]]
        if covariance:
            logits = [a + float(key @ wide @ key) / (2 * dim) for a, key in zip(logits, keys[sinks:], strict=True)]
        total += torch.tensor(logits, dtype=torch.float64).softmax(0) / len(moments)
    return total * values[sinks:].norm(dim=-1) if value_norm else total
