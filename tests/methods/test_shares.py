"""A budget given as a share of the prompt: rounded down, as decimals are, and an error where nothing is left."""

from decimal import Decimal

import pytest

from pvcbench.evaluation.cells import Point, parse_budgets
from pvcbench.policy import OutOfReach, Shape
from tiny import METHODS, configured


def entries(share, tokens, name="random"):
    """What a share of a prompt is in entries."""
    shape = Shape(tokens, 4, tuple(range(4)))
    return Point(name, METHODS[name], repr(share), share).cell(shape, False).budget


@pytest.mark.parametrize("share", [0.05, 0.1, 0.29, 0.35, 0.55, 0.7, 0.999, 1e-3])
def test_a_share_is_rounded_down_in_decimals(share):
    """Never more than was asked, and never one less for a product such as 0.7 * 90 = 62.99999999999999."""
    for tokens in (1000, 1004, 1999, 4096, 90 * 100, 128_000):
        assert entries(share, tokens) == int(Decimal(str(share)) * tokens) <= Decimal(str(share)) * tokens
    assert entries(0.7, 90) == 63 and entries(0.29, 100) == 29 and entries(0.1, 95) == 9


def test_a_share_of_less_than_one_entry_is_out_of_reach():
    """Every method with budgets says so, instead of keeping nothing and answering from an empty cache."""
    asked = 0
    for name, method in configured().items():
        if method.own_budget is not None:
            continue
        shape = Shape(19, 4, tuple(range(4)))
        with pytest.raises(OutOfReach, match=r"0\.05 of 19 tokens is less than one entry"):
            Point(name, method, "0.05", 0.05).cell(shape, False)
        asked += 1
    assert asked >= 20
    assert entries(0.05, 20) == 1


def test_a_share_of_one_keeps_everything():
    """1.0 is the whole prompt, by the code path of the full cache; integers stay as they are."""
    assert parse_budgets([64, 0.25, 1.0]) == [64, 0.25, 1.0]
    cell = Point("random", METHODS["random"], "1.0", 1.0).cell(Shape(19, 4, (0, 1, 2, 3)), False)
    assert cell.everything
