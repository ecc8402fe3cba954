"""How many entries PvC keeps per layer, in closed form, and the solver that meets a budget with it."""

import math
from dataclasses import replace
from functools import lru_cache

from pvcbench.policy import OutOfReach


def schedule(kind, ratio, layer, layers):
    """The share of the older context that survives a layer: from 1 towards `ratio` with depth (constant: always it)."""
    if kind == "cosine":
        return ratio + (1 - ratio) * (1 + math.cos(math.pi * layer / layers)) / 2
    return ratio if kind == "constant" else 1 - (1 - ratio) * layer / layers


def ladder(method, shape):
    """Entries that reach layer 0, 1, ... and, last, those that would reach one more."""
    recent = min(shape.tokens, int(method.recent_ratio * shape.tokens) + 1)
    older = shape.tokens - recent
    floor, kept = min(method.min_context_length, older), [shape.tokens]
    for layer in range(shape.layers):
        share = schedule(method.schedule, method.prefill_decay_ratio, layer, shape.layers)
        fewer = int(older * share)
        prunes = layer in shape.evicted and layer % method.layerwise_downsample_interval == 0
        if prunes and fewer > floor and share < 1:  # a sliding layer's attention says nothing of what it cannot see
            older = fewer
        kept.append(older + recent)
    return kept


def mean_entries(method, shape):
    """Mean entries per KV head over the layers that evict."""
    after = 1 if method.prune == "kv" else 0  # pruned states reach the next layer, pruned keys leave their own
    kept = ladder(method, shape)
    return sum(kept[layer + after] for layer in shape.evicted) / len(shape.evicted)


@lru_cache(maxsize=4096)
def solve(method, budget, shape):
    """The method at the ratios that keep `budget` entries, to 1% of the prompt; raises OutOfReach.

    recent_ratio stays and the decay ratio is bisected; where that does not reach, the decay ratio is 0.01 and
    recent_ratio is bisected. The floor makes some schedules jump (a constant one stops at its first step below it):
    there a grid is searched, for the widest recent window that meets the budget.
    """

    def at(ratio, recent=method.recent_ratio):
        return replace(method, prefill_decay_ratio=ratio, recent_ratio=recent)

    def off(candidate):
        return abs(mean_entries(candidate, shape) - budget)

    def bisect(high, make):
        low = 0.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if mean_entries(make(middle), shape) <= budget else (low, middle)
        return min((make(low), make(high)), key=off)

    def candidates():
        yield bisect(1.0, at)
        yield bisect(method.recent_ratio, lambda recent: at(0.01, recent))
        for part in range(20, -1, -1):
            yield min((at(step / 400, method.recent_ratio * part / 20) for step in range(401)), key=off)

    for found in candidates():
        if off(found) <= 0.01 * shape.tokens:
            return found
    least = min(mean_entries(at(step / 2000, 0.0), shape) for step in range(2001))
    if budget < least:
        raise OutOfReach(f"below PvC's reach of {least / shape.tokens:.1%}")
    raise OutOfReach(f"no ratio of PvC's {method.schedule} schedule comes within 1% of {budget / shape.tokens:.1%}")
