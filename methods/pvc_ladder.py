"""How many entries PvC keeps per layer, in closed form, and the solver that meets a budget with it."""

import math
from dataclasses import replace
from functools import lru_cache

from pvcbench.policy import OutOfReach, torch


def schedule(kind, ratio, layer, layers):
    """The share of the older context that survives a layer: from 1 towards `ratio` with depth (constant: always it)."""
    if kind == "cosine":
        return ratio + (1 - ratio) * (1 + math.cos(math.pi * layer / layers)) / 2
    return ratio if kind == "constant" else 1 - (1 - ratio) * layer / layers


def ladder(method, shape):
    """Entries that reach layer 0, 1, ... and, last, those that would reach one more."""
    return [int(size) for size in sizes(method, shape, method.prefill_decay_ratio, method.recent_ratio)]


def sizes(method, shape, ratio, recent_ratio):
    """The ladder at other ratios; `ratio` is one number or a tensor of them, and so is each size."""
    recent = min(shape.tokens, int(recent_ratio * shape.tokens) + 1)
    older = shape.tokens - recent
    floor, kept = min(method.min_context_length, older), [shape.tokens]
    for layer in range(shape.layers):
        if layer in shape.evicted and layer % method.layerwise_downsample_interval == 0:
            share = schedule(method.schedule, ratio, layer, shape.layers)
            fewer = older * share // 1  # a sliding layer's attention says nothing of what it cannot see: none there
            older = older + (fewer > floor) * (share < 1) * (fewer - older)
        kept.append(older + recent)
    return kept


def mean_entries(method, shape):
    """Mean entries per KV head over the layers that evict."""
    return mean_at(method, shape, method.prefill_decay_ratio, method.recent_ratio)


def mean_at(method, shape, ratio, recent_ratio):
    """The same at other ratios; `ratio` is one number or a tensor of them."""
    after = 1 if method.prune == "kv" else 0  # pruned states reach the next layer, pruned keys leave their own
    kept = sizes(method, shape, ratio, recent_ratio)
    return sum(kept[layer + after] for layer in shape.evicted) / len(shape.evicted)


@lru_cache(maxsize=4096)
def solve(method, budget, shape):
    """The method at the ratios that keep `budget` entries, to 1% of the prompt; raises OutOfReach.

    recent_ratio stays and the decay ratio is bisected; where that does not reach, the decay ratio is 0.01 and
    recent_ratio is bisected. The floor makes some schedules jump (a constant one stops at its first step below it):
    there a grid is searched, all decay ratios of a recent window at once, for the widest window that meets the budget.
    """
    for ratio, recent_ratio in _candidates(method, budget, shape):
        if abs(mean_at(method, shape, ratio, recent_ratio) - budget) <= 0.01 * shape.tokens:
            return replace(method, prefill_decay_ratio=ratio, recent_ratio=recent_ratio)
    least = float(torch.as_tensor(mean_at(method, shape, _steps(2000), 0.0)).min())
    if budget < least:
        raise OutOfReach(f"below PvC's reach of {least / shape.tokens:.1%}")
    raise OutOfReach(f"no ratio of PvC's {method.schedule} schedule comes within 1% of {budget / shape.tokens:.1%}")


def _candidates(method, budget, shape):
    """The decay and recent ratios that may meet the budget, the wider recent window first."""
    wide, grid = method.recent_ratio, _steps(400)
    yield _bisected(method, budget, shape, 1.0, lambda middle: (middle, wide))
    yield _bisected(method, budget, shape, wide, lambda middle: (0.01, middle))
    for part in range(20, -1, -1):
        recent_ratio = wide * part / 20
        best = (
            torch.as_tensor(mean_at(method, shape, grid, recent_ratio) - budget).abs().argmin()
        )  # the first of equals
        yield float(grid[best]), recent_ratio


def _steps(count):
    """The numbers from 0 to 1 in so many steps."""
    return torch.arange(count + 1, dtype=torch.float64, device="cpu") / count


def _bisected(method, budget, shape, high, ratios):
    """The better of the two ends of a bisection between 0 and `high`; `ratios` makes the two ratios of a number."""
    low = 0.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_at(method, shape, *ratios(middle)) <= budget else (low, middle)
    return min((ratios(low), ratios(high)), key=lambda found: abs(mean_at(method, shape, *found) - budget))
