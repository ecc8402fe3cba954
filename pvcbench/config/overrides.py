"""Prepares KEY=VALUE settings for Hydra, so that names of files need no quotes but the shell's.

A value is plain text, taken as it stands, where Hydra's grammar cannot read it (`task.path=a=b (1).jsonl`), and where
the key holds text and Hydra would make something else of it (`experiment=001`, `results=[1]`). Everything else is
Hydra's: lists, numbers, true, null, 'quoted text', ${interpolations}, and commas in a multirun.
"""

import re
from collections.abc import Callable, Mapping, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from pvcbench.config import settings
from pvcbench.errors import UserError

KEY = re.compile(r"[^=+~'\"\s\[\]{}(),:]+")
NOTHING = object()  # the default of a key that the configuration does not have


def quoted(text: str) -> str:
    """Text in Hydra's grammar that reads as itself, `${` included."""
    plain = re.sub(r"(\\*)\$\{", lambda found: f"{found[1] * 2}\\${{", text)
    return QuotedString(text=plain, quote=Quote.single).with_quotes()


def parsed(text: str) -> Override | None:
    """What Hydra reads in an override, None where it cannot."""
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException:
        return None


def pieces_of(text: str) -> tuple[str, str, str]:
    """The mark (`+`, `++`, `~` or none), key and value of an override; raises UserError where it is none."""
    mark = text[: len(text) - len(text.lstrip("+~"))]
    key, equals, value = text.removeprefix(mark).partition("=")
    if mark not in ("", "+", "++", "~") or not KEY.fullmatch(key) or not (equals or mark == "~"):
        raise UserError(f"what is {text!r}? write KEY=VALUE, or `list`, or --help")
    return mark, key, value


def first_of(text: str) -> str:
    """An override with the first of the values that it has for several runs."""
    read = parsed(text)
    if read is None or not read.is_sweep_override():
        return text
    return f"{read.get_key_element()}={next(iter(read.sweep_string_iterator()))}"


def readable(texts: Sequence[str], defaults: Callable[[], Mapping], several: bool = False) -> list[str]:
    """Overrides of single settings that Hydra reads as they were meant; `several`: commas separate runs.

    `defaults()` is the configuration without them, as nested dictionaries.
    """
    known: Mapping | None = None
    made = []
    for text in texts:
        mark, key, value = pieces_of(text)
        if mark == "~":
            made.append(deletion(text))
            continue
        read = parsed(text)
        trimmed = value != value.strip()  # by Hydra; a name may begin or end with a blank
        if read is not None and isinstance(read.value(), str) and not read.is_sweep_override() and not trimmed:
            made.append(text)
            continue
        known = defaults() if known is None else known
        made.append(f"{mark}{key}={meant(key, value, read, default_of(key, known), several)}")
    return made


def deletion(text: str) -> str:
    """An override that takes a key away, if it may be."""
    read = parsed(text)
    if read is None:
        raise UserError(f"what is {text!r}? write ~KEY to leave a key out")
    if read.key_or_group in settings.Config.__dataclass_fields__:
        raise UserError(f"every run needs {read.key_or_group}: leave {text} out")
    return text


def meant(key: str, value: str, read: Override | None, default: object, several: bool) -> str:
    """The value of one override as Hydra should read it; raises UserError where it is nothing that the key can hold."""
    text, other = holds(key, default)
    if read is None and several and "," in value and not re.search(r"['\"\[\]{}()]", value):
        parts = [(part, parsed(f"{key}={part}")) for part in value.split(",")]
        return ",".join(meant(key, part, one, default, False) for part, one in parts)
    if read is None:
        if other:
            raise UserError(f"{key} must be {other}: {value!r} cannot be read as that")
        return quoted(value)
    if read.is_sweep_override():
        if several or (not text and not other and default is NOTHING):
            return value
        if text:
            return quoted(value)
        hint = f"; one list is written '{key}=[{value}]'" if other is None or "list" in other else ""
        raise UserError(f"{key}={value}: several values need --multirun, one run each{hint}")
    found = read.value()
    if text and found is not None and (not isinstance(found, str) or value.strip() == found):
        return quoted(value)
    refuse_kind(key, value, found)
    return value


def holds(key: str, default: object) -> tuple[bool, str | None]:
    """Whether a key holds text, and in words what it takes where it cannot; neither where nothing is known."""
    if key in settings.kinds():
        text = settings.kinds()[key][0] is str
        return text, None if text else settings.wanted(key)
    if default is None or default is NOTHING:
        return False, None
    kind = next(kind for kind in (bool, int, float, str, list, dict, object) if isinstance(default, kind))
    words = {list: "a list such as [1,2]", object: "a value"} | settings.WORDS
    return kind is str, None if kind is str else words[kind]


def refuse_kind(key: str, value: str, found: object) -> None:
    """Refuses values of a kind that would be taken for another, or for none."""
    if found == {}:
        chosen = f"; set {settings.GROUPS[key]}" if key in settings.GROUPS else ""
        raise UserError(f"{key}={value} changes nothing: a mapping replaces only the keys that it has{chosen}")
    if key in settings.kinds():
        kind, empty = settings.kinds()[key]
        odd = kind is bool and isinstance(found, int | float) and found not in (0, 1)
        if odd or (found is None and not empty):
            raise UserError(f"{key} must be {settings.wanted(key)}, not {value}")


def default_of(key: str, defaults: Mapping) -> object:
    """The value of a dotted key; NOTHING where there is none."""
    node: object = defaults
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return NOTHING
        node = node[part]
    return node
