"""Budgets as they are asked for: entries per KV head, or a share of the compressed part."""

import math
from collections.abc import Sequence

from pvcbench.errors import UserError


def parse_budgets(budgets: Sequence) -> list[int | float]:
    """Checked budgets: integers are entries per KV head, floats in (0, 1] shares of the prompt, rounded down."""
    if not isinstance(budgets, Sequence) or isinstance(budgets, str) or not budgets:
        raise UserError(f"budgets must be a list such as [64,0.25,0.5], not {budgets!r}")
    for budget in budgets:
        if isinstance(budget, bool) or not isinstance(budget, int | float):
            raise UserError(f"budgets: {budget!r} is neither an integer (entries) nor a float (share of the prompt)")
        if isinstance(budget, float) and not 0 < budget <= 1:
            whole = math.isfinite(budget) and round(budget) > 0
            advice = f"write {round(budget)} for entries per KV head" if whole else "write one such as 0.25"
            raise UserError(f"budgets: a share lies in (0, 1], not {budget}; {advice}")
        if isinstance(budget, int) and budget < 1:
            raise UserError(
                f"budgets: {budget} entries hold nothing; write a positive integer, or a share such as 0.05"
            )
    return list(budgets)
