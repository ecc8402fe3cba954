"""The ways a run or a cell ends early, so that the command line and the rows can say which in one line."""

import re


class UserError(Exception):
    """Something the user asked for cannot be done; the message says what to do instead (exit code 2)."""


class Inexact(UserError):
    """A sequence cannot be measured exactly on this model; other sequences can."""


class OutOfReach(Exception):
    """A method cannot get down to the budget asked of it; `reach` is the smallest share of the cache it can keep.

    Where it is not given, it is the one that the message names ("a reach of 38.0%"), or None.
    """

    def __init__(self, message: str, reach: float | None = None):
        super().__init__(message)
        self.reach = named_reach(message) if reach is None else reach


def named_reach(message: str) -> float | None:
    """The share of the cache that a message names as a method's reach; None where it names none."""
    found = re.search(r"reach of ([\d.]+)%", message)
    return float(found[1]) / 100 if found else None


class MethodError(Exception):
    """A method breaks its contract; the message names its file and line, what came and what is wanted (exit code 1).

    `fault` is the kind of the mistake in one word, for those who sort such errors (see `pvcbench/checks`).
    """

    def __init__(self, message: str, fault: str = "answer"):
        super().__init__(message)
        self.fault = fault


class TaskError(Exception):
    """A task fails to make a sample; the message names the task, its class, the sample and the line (exit code 1)."""


class NotFinite(FloatingPointError):
    """Numbers of a model are NaN or infinite where a result would follow from them; the message says what to do."""


NOT_FINITE = (
    "the model's logits are NaN or infinite, so nothing follows from them: use a wider dtype (dtype=float32, or "
    "bfloat16 instead of float16), or look for such numbers in the model's weights"
)
