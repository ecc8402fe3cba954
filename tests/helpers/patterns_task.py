"""A task that observes attention patterns of prompts of 64 tokens, and how exact what it measures is in float64."""

from pvcbench.analyses.attention_patterns.task import AttentionPatterns

EXACT = 1e-9  # float64 sums of some dozen terms


def task(**settings):
    settings = {"tokens": [64], "sinks": 2, "recent": 8, "rows": 5, "top": [1, 4], **settings}
    return AttentionPatterns(**settings)
