"""Checks of a method of one's own: the exactness properties, on tiny random models, each failure in one line."""

from pvcbench.checks.method import Outcome, check_method, failures

__all__ = ["Outcome", "check_method", "failures"]
