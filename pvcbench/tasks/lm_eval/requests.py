"""A request of lm-eval as tokens."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One request as tokens, or one window of a rolling one; `protocol` is what answers it."""

    protocol: str  # continuation | generate | streaming
    context: tuple[int, ...]
    continuation: tuple[int, ...] = ()  # the tokens to score
    stop: tuple[str, ...] = ()
    new_tokens: int = 0
