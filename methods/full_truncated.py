"""The full cache of a model whose text ends at so many tokens: the control of eviction while decoding.

Nothing is evicted. Prompt and answer share the budget, and the answer ends where it is used up, as under
`max_length=budget`. A method that holds the same budget has to beat it: else the longer answers gained nothing.
"""

from dataclasses import dataclass

from pvcbench.policy import Method


@dataclass(frozen=True)
class FullTruncated(Method):
    """Keeps every entry; a budget that the prompt fills by itself is out of reach."""

    ends_at_budget = True
    decodes = ("hold",)
    protocols = ("generate",)

    def scores(self, seen):
        """The newest: asked only for rows whose answer is complete while others of their batch go on."""
        return seen.positions.double()
