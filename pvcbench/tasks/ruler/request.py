"""What a generator of samples is asked for, and what it makes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np


class TooFew(Exception):
    """The length does not hold a generator's smallest sample."""


@dataclass(frozen=True)
class Made:
    """One prompt in parts: `question` starts where the context ends, and `prefix` is how the answer begins."""

    context: str
    question: str
    prefix: str
    answers: tuple[str, ...]
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    cluster: str = ""  # what samples have in common, such as a document that several questions ask about


@dataclass(frozen=True)
class Request:
    """One sample of one set: `extra` tokens are kept free, and `over` counts the tokens beyond the length."""

    tokenizer: object
    length: int
    extra: int
    seed: int
    repeat: int  # the number of the sample within its set and length
    name: str = ""  # the set's
    over: Callable[[Made], int] | None = None
    folder: object = None  # of the essays and questions; None: the installed package's
    memory: dict = field(default_factory=dict)  # the task's, for what takes long to find again
    example: bool = False  # whether CWE shows its example

    @property
    def rng(self) -> np.random.Generator:
        """A generator for this sample of this set; the same at every length."""
        return np.random.default_rng(np.random.SeedSequence([self.seed, self.repeat, *self.name.encode()]))


def largest(fits: Callable[[int], bool], least: int, most: int) -> int:
    """The largest number that fits, by halving: `TooFew` where not even the least does."""
    if not fits(least):
        raise TooFew
    low, high = least, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
