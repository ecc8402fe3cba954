"""A method of your own, beside H2O: it keeps the entries with the largest values, and the newest ones.

    python examples/own_method.py

A method is a frozen dataclass that gives each cache entry a score; the highest scores stay. The model has random
weights, which load at once and show that the method runs and how much it keeps. Its answers mean nothing, as a warning
says: write `model="smollm2"` for answers that do.
"""

from dataclasses import dataclass

import pvcbench
from pvcbench.policy import Method

SETTINGS = {"model": "random", "task": "needle", "budgets": [0.25, 0.5], "task__lengths": [512], "limit": 3}
PLACES = {"results": "example_results", "wandb": {"mode": "disabled"}}
SHOWN = ["method", "budget", "kept_fraction", "samples"]


@dataclass(frozen=True)
class LargeValues(Method):
    """Keeps the entries whose values have the largest norms, beside a share of the budget for the newest ones."""

    newest: float = 0.25

    def protects(self, budget, shape):
        return 0, int(self.newest * budget)

    def scores(self, seen):
        return seen.values.norm(dim=-1)


def main() -> None:
    """Measures the method, and H2O on the same prompts."""
    own = pvcbench.evaluate(methods={"large_values": LargeValues()}, **SETTINGS, **PLACES)
    print(own[SHOWN].to_string(index=False))
    print(pvcbench.evaluate(methods=["h2o"], **SETTINGS, **PLACES)[SHOWN].to_string(index=False))


if __name__ == "__main__":
    main()
