"""The six attention patterns as rules over a head's entropy and its mass by region.

The text's examples (LLaMA-2-7B-80K) and what the default thresholds make of them:

>>> from pvcbench.analyses.attention_patterns.task import THRESHOLDS
>>> PATTERNS[int(classify(entropy=2.53, sink=0.632, recent=0.337, tokens=50_000, thresholds=THRESHOLDS))]
'V-shaped'
>>> PATTERNS[int(classify(entropy=6.43, sink=0.1, recent=0.035, tokens=50_000, thresholds=THRESHOLDS))]
'scattered'
"""

from collections.abc import Mapping

import numpy as np

PATTERNS = ("uniform", "V-shaped", "attention sink", "recency", "scattered", "concentrated")
COMPRESSIBLE = np.array([False, True, True, True, False, True])  # the text's verdict on each
UNIFORM, V_SHAPED, SINK, RECENCY, SCATTERED, CONCENTRATED = range(6)


def classify(entropy, sink, recent, tokens, thresholds: Mapping[str, float]) -> np.ndarray:
    """The pattern of each head as an index into PATTERNS; entropies in nats, masses as shares, arrays of one shape.

    Nearly the largest entropy is uniform. Else, where the middle holds at least `middle` of the mass, a low entropy is
    concentrated and a high one scattered; where it does not, one end with `dominant` of the mass at both names the
    pattern, and otherwise it is V-shaped.
    """
    entropy, sink, recent = (np.asarray(part, dtype=float) for part in (entropy, sink, recent))
    ends = sink + recent
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(ends > 0, sink / ends, 0.5)
    conditions = [
        entropy >= thresholds["uniform"] * np.log(tokens),
        (1 - ends >= thresholds["middle"]) & (entropy < thresholds["concentrated"]),
        1 - ends >= thresholds["middle"],
        share >= thresholds["dominant"],
        share <= 1 - thresholds["dominant"],
    ]
    return np.select(conditions, [UNIFORM, CONCENTRATED, SCATTERED, SINK, RECENCY], V_SHAPED)


def clearness(entropy, sink, recent) -> np.ndarray:
    """How clearly heads would show each pattern, [patterns, ...]: what picks the head that is drawn for it."""
    entropy, sink, recent = (np.asarray(part, dtype=float) for part in (entropy, sink, recent))
    middle = 1 - sink - recent
    return np.stack([entropy, np.minimum(sink, recent), sink, recent, middle * entropy, middle / (1 + entropy)])
