"""The full cache: nothing is evicted. The reference of every curve."""

from dataclasses import dataclass

from pvcbench.policy import Method


@dataclass(frozen=True)
class Full(Method):
    """Keeps every entry, through the code path of all other methods."""

    reference = True
