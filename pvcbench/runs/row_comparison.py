"""What differs between a stored run and one of today: parts of its identity, and fields of its rows."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

TIMES = frozenset({"prefill_s", "decode_s", "peak_bytes"})
SPEEDS = TIMES | {"score", "metrics", "repeats", "session", "search"}  # of tasks that measure: what never repeats
FROM_OUTPUT = frozenset({"score", "metrics", "output"})
MEANING = {
    "source": "the method's code was changed",
    "code": "the task's code was changed",
    "weights": "other weights",
    "loaded_sha256": "other weights in memory",
    "tokenizer": "another tokenizer or chat template",
    "data": "other data",
    "version": "a newer definition of it",
    "hardware": "another machine",
    "threads": "another number of threads",
}


@dataclass(frozen=True)
class Tolerance:
    """How far numbers may lie apart; `answers` is the share of rows whose output may be another one."""

    relative: float
    absolute: float
    survival: float  # absolute, of the shares in spans_kept: a kept set may differ where scores tie
    answers: float

    @classmethod
    def of(cls, dtype: str, relative: float | None = None) -> "Tolerance":
        """What another machine or another version is granted: more in sixteen bits."""
        relative = relative or (1e-3 if dtype in ("float32", "float64") else 1e-2)
        return cls(relative, relative / 10, survival=0.1, answers=0.1)

    def near(self, then: float, now: float, field: str) -> bool:
        """Whether two numbers of a field agree."""
        if field == "spans_kept":
            return abs(then - now) <= self.survival
        return math.isclose(then, now, rel_tol=self.relative, abs_tol=self.absolute)


def flat(node: Mapping, prefix: str = "") -> dict[str, object]:
    """Nested mappings as one, with dotted keys."""
    found: dict[str, object] = {}
    for key, value in node.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return found


def changes(then: Mapping, now: Mapping) -> list[str]:
    """One line for every part of an identity that is not what it was."""
    old, new = flat(plain(then)), flat(plain(now))
    lines = []
    for key in sorted(old.keys() | new.keys()):
        if key in old and key in new and old[key] == new[key]:
            continue
        before, after = (short(side[key]) if key in side else "nothing" for side in (old, new))
        meaning = MEANING.get(key.rpartition(".")[2])
        lines.append(f"{key}: {before} then, {after} now" + (f" ({meaning})" if meaning else ""))
    return lines


def plain(value):
    """A value as JSON gives it back."""
    return json.loads(json.dumps(value, sort_keys=True))


def short(value: object) -> str:
    """A value in a line; hashes by their first twelve digits."""
    text = value if isinstance(value, str) else json.dumps(value)
    if isinstance(value, str) and len(value) >= 40 and all(digit in "0123456789abcdef" for digit in value):
        return value[:12]
    return text if len(text) <= 60 else f"{text[:57]}..."


def row_differences(
    then: Mapping, now: Mapping, tolerance: Tolerance | None, ignored: frozenset = TIMES
) -> tuple[list[str], bool]:
    """Where two rows of one sample and cell differ, and whether their outputs do; no tolerance asks for equality.

    Fields that only one row has are left out: they came or went with a version. Under a tolerance, another output is
    no difference by itself (the caller counts them), and the scores that follow from it are not compared.
    """
    then, now = plain(then), plain(now)
    fields = (then.keys() & now.keys()) - ignored
    other = "output" in fields and then["output"] != now["output"]
    if other and tolerance is not None and isinstance(then["output"], str) and isinstance(now["output"], str):
        fields -= FROM_OUTPUT
    lines = []
    for field in sorted(fields):
        found = list(_unequal(then[field], now[field], field, field, tolerance))
        lines += found[:1] + ([f"{field}: {len(found) - 1} more"] if len(found) > 1 else [])
    return lines, other


def _unequal(then, now, path: str, field: str, tolerance: Tolerance | None) -> Iterator[str]:
    if isinstance(then, dict) and isinstance(now, dict):
        for key in sorted(then.keys() | now.keys()):
            yield from _unequal(then.get(key), now.get(key), f"{path}.{key}", field, tolerance)
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        for number, pair in enumerate(zip(then, now, strict=True)):
            yield from _unequal(*pair, f"{path}[{number}]", field, tolerance)
    elif isinstance(then, str) and isinstance(now, str):
        if then != now:
            yield f"{path}: {text_difference(then, now)}"
    elif not (_numbers(then, now) and tolerance is not None and tolerance.near(then, now, field)) and (
        type(then) is not type(now) or then != now
    ):
        yield f"{path}: {short(then)} then, {short(now)} now"


def _numbers(*values) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def text_difference(then: str, now: str) -> str:
    """Where two texts part, with a little of both."""
    place = next((n for n, (a, b) in enumerate(zip(then, now, strict=False)) if a != b), min(len(then), len(now)))
    return f"from character {place} on {then[place : place + 40]!r} then, {now[place : place + 40]!r} now"
