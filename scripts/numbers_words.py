"""How the documents write numbers: shares, p-values, ranges, lists and paragraphs."""

import textwrap
from collections.abc import Iterable, Sequence
from math import isnan

NAMES = {
    "full": "the full cache",
    "pvc": "PvC",
    "h2o": "H2O",
    "streaming_llm": "StreamingLLM",
    "snapkv": "SnapKV",
    "random": "random eviction",
}


def called(method: str) -> str:
    """A method as it is called in a sentence."""
    return NAMES.get(method, f"`{method}`")


def percent(share: str | float) -> str:
    """A budget or share in per cent."""
    return f"{float(share):.0%}"


def joined(words: Iterable[str]) -> str:
    """Words as a list in a sentence."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def pvalue(p: float) -> str:
    """A p-value with two digits that count, or a bound."""
    return "none" if isnan(p) else "below 0.001" if p < 0.001 else f"{p:.2g}"


def span(values: Sequence[float], digits: int = 2) -> str:
    """The smallest and the largest of some values, or the one that they all are."""
    ends = sorted({f"{value:.{digits}f}" for value in (min(values), max(values))}, key=float)
    return " to ".join(ends)


def paragraph(text: str) -> str:
    """A sentence or more in lines of at most 120 characters; no word or link is broken."""
    return "\n".join(textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False))
