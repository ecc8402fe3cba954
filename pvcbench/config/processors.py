"""The processors that a run computes on: its device and its threads."""

import os
import sys

from pvcbench.errors import UserError


def device_of(name: str) -> str:
    """The device a run uses: the first GPU if there is one and `auto` was asked."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        here = ["auto", "cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise UserError(
            f"device {name!r} cannot be used here, choose from {', '.join(here)} ({type(error).__name__}: {reason})"
        ) from error
    return name


def threads_of(asked: int | None) -> int:
    """Threads for the model: what was asked, or all cores this process may run on."""
    own = os.sched_getaffinity(0) if sys.platform == "linux" else range(os.cpu_count() or 1)
    return asked or len(own)
