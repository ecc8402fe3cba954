"""Pairs of two lists as parameters of a test: the fast tier has each value of both, the slow one every pair."""

from collections.abc import Iterable, Sequence

import pytest


def pairs(names: Iterable[str], others: Sequence, first: Sequence = ()) -> list:
    """Every name with every one of the others; `slow` are all but those of `first`, and one of the rest in turn.

    Where there are as many names as others or more, the fast tier has each of the others with some name.
    """
    rest, found = [one for one in others if one not in first], []
    for number, name in enumerate(names):
        fast = [*first, rest[number % len(rest)]]
        found += [pytest.param(name, one, marks=() if one in fast else pytest.mark.slow) for one in others]
    return found
