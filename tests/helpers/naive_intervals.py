"""R-KV, SnapKV-D, VaSE and a decoding that evicts at intervals once more, from their descriptions, in float64.

Queries, keys and values come from the dense reference under the mask of what was kept; all else is sets of positions,
lists and loops. A method is a function of what one KV head holds, which gives a score for every entry it may lose.
"""

import math
from dataclasses import dataclass

import torch

from naive import Tie, top

MASK = (1 << 64) - 1


@dataclass
class Head:
    """One KV head of one sample and layer when it evicts: vectors by position."""

    rows: list[dict[int, list[float]]]  # of each query head of its group, every token's query
    keys: dict[int, list[float]]  # of the entries that are there
    values: dict[int, list[float]]
    scale: float
    seen: int
    place: tuple[int, int, int]  # the sample's draw, the layer, the head
    kept: int  # entries that will be left
    protected: set[int]  # of the prompt, where it is never evicted

    def older(self, window: int) -> list[int]:
        """The entries before the newest tokens, by age."""
        return sorted(j for j in self.keys if j < self.seen - window)

    def logits(self, window: int) -> list[list[list[float]]]:
        """Of each query head and each row of the window the logits of the older entries."""
        newest, older = range(self.seen - window, self.seen), self.older(window)
        return [[[self.scale * dot(head[i], self.keys[j]) for j in older] for i in newest] for head in self.rows]


def dot(one, other) -> float:
    return math.fsum(a * b for a, b in zip(one, other, strict=True))


def softmax(numbers: list[float]) -> list[float]:
    powers = [math.exp(x - max(numbers)) for x in numbers]
    return [x / math.fsum(powers) for x in powers]


def columns(rows: list[list[float]]) -> list[float]:
    """The mean of each column."""
    return [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]


def neighbours(numbers: list[float], kernel: int) -> list[list[float]]:
    """The numbers around each one."""
    half = kernel // 2
    return [numbers[max(0, place - half) : place + half + 1] for place in range(len(numbers))]


# ---------------------------------------------------------------------------------------------- methods


def redundancy(keys: list[list[float]], similar: float) -> list[float]:
    """The softmax of the columns' means, each row without its last cosine above the bound and without itself."""
    rows = []
    for i, key in enumerate(keys):
        row = [dot(key, other) / math.sqrt(dot(key, key) * dot(other, other)) for other in keys]
        row[i] = 0.0
        if any(abs(x - similar) < 1e-9 for x in row):
            raise Tie
        alike = [j for j, x in enumerate(row) if x > similar]
        if alike:
            row[alike[-1]] = 0.0
        rows.append(row)
    return softmax(columns(rows))


def rkv(mix: float, window: int, kernel: int, similar: float):
    def scores(head: Head) -> dict[int, float]:
        older, every = head.older(window), sorted(head.keys)
        largest = [[max(logits) for logits in zip(*row, strict=True)] for row in zip(*head.logits(window), strict=True)]
        importance = [max(near) for near in neighbours(columns([softmax(row) for row in largest]), kernel)]
        alike = dict(zip(every, redundancy([head.keys[j] for j in every], similar), strict=True))
        return {j: mix * one - (1 - mix) * alike[j] for j, one in zip(older, importance, strict=True)}

    return scores


def snapkv_d(window: int, kernel: int):
    def scores(head: Head) -> dict[int, float]:
        older, found = head.older(window), []
        for rows in head.logits(window):
            found.append([math.fsum(near) / kernel for near in neighbours(columns([softmax(r) for r in rows]), kernel)])
        return dict(zip(older, columns(found), strict=True))

    return scores


def scrambled(state: int) -> int:
    """SplitMix64's finalizer."""
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & MASK
    return state ^ (state >> 31)


def redrawn(head: Head, position: int) -> int:
    """A number below 2^53 that is another one in every eviction."""
    draw, layer, number = head.place
    state = scrambled((scrambled((scrambled(draw) + layer) & MASK) + number) & MASK)
    state = scrambled((scrambled((state + position) & MASK) + head.seen) & MASK)
    return state & ((1 << 53) - 1)


def random_redrawn(head: Head) -> dict[int, float]:
    return {j: float(redrawn(head, j)) for j in head.keys}


def vase(window: int, kernel: int, outliers: int, sinks: int):
    def scores(head: Head) -> dict[int, float]:
        attention = snapkv_d(window, kernel)(head)
        open_to = [j for j in attention if j >= sinks and j not in head.protected]
        spread = {j: max(head.values[j]) - min(head.values[j]) for j in open_to}
        lost = len(head.keys) - head.kept
        quota = min(outliers - sinks, (len(open_to) - lost) // 2)
        widest = top(spread, quota)
        found = dict.fromkeys([*widest, *range(sinks)], math.inf)
        for j in open_to:
            uniform = (redrawn(head, j) + 0.5) / 2**53
            found.setdefault(j, math.log(attention[j]) - math.log(-math.log(uniform)))
        return found

    return scores


# ---------------------------------------------------------------------------------------------- decoding


def chosen(scores, head: Head) -> set[int]:
    """What is left of a head: what is protected, what no score names, and the best of the others."""
    worth = {j: s for j, s in scores(head).items() if j in head.keys and j not in head.protected}
    stays = head.keys.keys() - worth.keys()
    return stays | set(top(worth, head.kept - len(stays)))


def watched(reference, ids, masks):
    """Logits, and queries, keys and values of every layer."""
    found, plain = {}, reference.attend

    def attend(module, query, key, value, scale, window):
        found[module.layer_idx] = query, key, value, scale
        return plain(module, query, key, value, scale, window)

    reference.attend = attend
    try:
        return reference(ids, masks=masks), found
    finally:
        del reference.attend


def decode(reference, ids, fed, scores, budget, interval, draws, stays=False):
    """Kept positions before each step as [step][layer][sample][head], and the logits after it.

    To the budget after the prompt, and again whenever `interval` entries are too many; with `stays` what the prompt
    kept is protected, and the budget is that of the entries after it.
    """
    start, whole = ids.shape[1], torch.cat((ids, fed), 1)
    (batch, total), config = whole.shape, reference.model.config
    layers, heads = config.num_hidden_layers, config.num_key_value_heads
    masks = torch.zeros(layers, batch, heads, total, total, dtype=torch.bool)
    masks[..., :start, :start] = True
    held = [[[set(range(start)) for _ in range(heads)] for _ in ids] for _ in range(layers)]
    prompt, kept, logits, most, seen = set(range(start)) if stays else set(), [], [], budget, start
    while True:
        out, vectors = watched(reference, whole[:, :seen], lambda n, to=seen: masks[n][..., :to, :to])
        logits.append(out[:, -1])
        due = seen == start or len(held[0][0][0]) >= most + interval
        for layer, sample, head in ((a, b, c) for a in range(layers) for b in range(batch) for c in range(heads)):
            own = held[layer][sample][head]
            if due and len(own) > most:
                place, stay = (int(draws[sample]), layer, head), prompt if seen > start else set()
                one = view(vectors[layer], sample, head, heads, own, seen, place, most, stay)
                held[layer][sample][head] = chosen(scores, one)
        most += budget if stays and seen == start else 0
        if seen == total:
            return kept, torch.stack(logits[1:], 1)
        kept.append([[[set(own) for own in sample] for sample in layer] for layer in held])
        for layer, sample, head in ((a, b, c) for a in range(layers) for b in range(batch) for c in range(heads)):
            held[layer][sample][head].add(seen)
            masks[layer, sample, head, seen, sorted(held[layer][sample][head])] = True
        seen += 1


def view(vectors, sample, head, heads, own, seen, place, kept, stay) -> Head:
    """A head as its method sees it."""
    query, key, value, scale = vectors
    group = query.shape[1] // heads
    rows = [dict(enumerate(one.tolist())) for one in query[sample, head * group : (head + 1) * group]]
    keys, values = (
        {j: vector for j, vector in enumerate(tensor[sample, head].tolist()) if j in own} for tensor in (key, value)
    )
    return Head(rows, keys, values, scale, seen, place, kept, stay)
