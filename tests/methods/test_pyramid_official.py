"""PyramidKV's sizes beside its authors' code: their floor division adds entries, ours keep the budget's sum."""

import pytest

from methods.pyramidkv import pyramid


def official(budget, window, tokens, layers, beta=20):
    """Entries beside the window of each layer, as KVCache-Factory's PyramidKVCluster computes them (integers only)."""
    least = (budget - window) // beta
    most = (budget - window) * 2 - least
    if most >= tokens - window:
        most = tokens - window
        least = (budget - window) * 2 - most
    step = (most - least) // (layers - 1)
    return [most - layer * step for layer in range(layers)]


@pytest.mark.parametrize("budget, theirs", [(64, 2032), (128, 4016), (512, 16576)])
def test_floor_division_adds_entries(budget, theirs):
    """32 layers and a window of 8, at 8,192 tokens: the numbers of methods2.md."""
    found, ours = official(budget, 8, 8192, 32), pyramid(budget - 8, 8192 - 8, 20, 32).tolist()
    assert sum(found) == theirs > 32 * (budget - 8) == sum(ours)
    assert found[0] == ours[0] and all(a >= b - 1 for a, b in zip(found, ours, strict=True))  # - 1: our rounding


def test_it_never_loses_any():
    """Over budgets, prompts and depths, the cap included: a smaller step cannot give less."""
    for layers in (2, 7, 28, 32, 80):
        for tokens in (200, 1000, 8192):
            for budget in range(16, tokens // 2, 37):
                assert sum(official(budget, 8, tokens, layers)) >= layers * (budget - 8)
