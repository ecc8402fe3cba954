"""How numbers are written in tables: scaled, rounded, with their intervals."""

import math


def number(value: float, scale: float, digits: int, sign: bool = False) -> str:
    """A number as the table shows it; nothing where there is none."""
    if value is None or math.isnan(value):
        return ""
    return f"{scale * value:{'+' if sign else ''}.{digits}f}".replace("inf", "∞")


def interval(low: float, high: float, scale: float = 100, digits: int = 1, sign: bool = False) -> str:
    """Both ends of an interval."""
    return "" if math.isnan(low) else f"[{number(low, scale, digits, sign)}, {number(high, scale, digits, sign)}]"


def scale_of(rows) -> tuple[float, int]:
    """Per cent with one digit for scores in [0, 1], else the scores as they are."""
    return (100, 1) if rows["score"].dropna().astype(float).between(0, 1).all() else (1, 4)
