"""Metrics of data sets by name: small functions of an answer, the gold answers and what else a metric reads."""
