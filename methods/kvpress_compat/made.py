"""Builds a press from its name and its options, presses inside it included.

An option that names a press is one: `press=SnapKVPress`. One with options of its own is written as this method is,
`press={press: SnapKVPress, options: {window_size: 32}}`, and several are a list.
"""

from collections.abc import Iterator, Mapping

from methods.kvpress_compat import installed
from pvcbench.policy import UserError

RATIO = "compression_ratio"


def frozen(value: object) -> object:
    """Options as tuples, which can be compared and hashed: a mapping as its pairs in order of their names."""
    if isinstance(value, Mapping):
        return tuple((str(key), frozen(value[key])) for key in sorted(value))
    return tuple(map(frozen, value)) if isinstance(value, list | tuple) else value


def press(name: str, options: tuple) -> object:
    """A new press; raises UserError where its class does not take these options."""
    kind = installed.load(name)
    values = {key: _option(key, value) for key, value in options}
    try:
        return kind(**values)
    except (TypeError, AssertionError, ValueError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{name} cannot be made of options {told(options)}: {text}") from error


def _option(key: str, value: object) -> object:
    """An option's value, where it is a press that press."""
    if isinstance(value, tuple) and value and all(_pair(one) for one in value):
        pairs = dict(value)
        if set(pairs) <= {"press", "options"} and isinstance(pairs.get("press"), str):
            return press(pairs["press"], pairs.get("options", ()))
        return {name: _option(name, one) for name, one in value}
    if isinstance(value, tuple):
        return [_option(key, one) for one in value]
    inside = key in ("press", "presses") or (isinstance(value, str) and value in installed.presses())
    return press(value, ()) if inside and isinstance(value, str) else value


def _pair(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str)


def told(options: tuple) -> str:
    """Options in a message."""
    return ", ".join(f"{key}={value}" for key, value in options) or "none"


def names_ratio(options: object) -> bool:
    """Whether a compression ratio is among some options, or among those of a press inside."""
    if not isinstance(options, tuple):
        return False
    return any((_pair(one) and one[0] == RATIO) or names_ratio(one) for one in options)


def inside(made: object) -> Iterator[object]:
    """A press and all presses that it holds."""
    yield made
    base = installed.load("BasePress")
    for value in vars(made).values():
        for one in value if isinstance(value, list | tuple) else (value,):
            if isinstance(one, base):
                yield from inside(one)
