"""A user's files: text, and JSON Lines of which every line is checked against a schema before any is used.

Text is UTF-8, or what a byte order mark says.
"""

import codecs
import difflib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ValidationError
from pydantic_core import PydanticCustomError

from pvcbench.errors import UserError

MOST = 10  # problems listed at once
MARKS = {  # the four bytes of UTF-32 begin like the two of UTF-16
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


class Number(str):
    """A JSON number as the file writes it: 1.50 stays 1.50."""


class Refused(ValueError):
    """What is wrong with one line."""


def text(value: object) -> str:
    """The value if it is text that UTF-8 can write; a validator of pydantic's."""
    if not isinstance(value, str) or isinstance(value, Number):
        raise PydanticCustomError("wanted", "text")
    lone = next((letter for letter in value if "\ud800" <= letter <= "\udfff"), None)
    if lone is not None:
        raise PydanticCustomError("surrogate", "whole characters", {"code": f"\\u{ord(lone):04x}"})
    return value


Text = Annotated[str, BeforeValidator(text)]


def read(path: Path, setting: str) -> str:
    """A text file's content with line ends as newlines; `setting` is what named the file."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{setting}: {path} cannot be read: {error.strerror}") from error
    return decoded(content, f"{setting}: {path}").replace("\r\n", "\n").replace("\r", "\n")


def decoded(content: bytes, name: str) -> str:
    """Text in the encoding that its byte order mark names, else in UTF-8; another is refused with the place."""
    mark, encoding = next(((mark, name) for mark, name in MARKS.items() if content.startswith(mark)), (b"", "utf-8"))
    try:
        found = content.removeprefix(mark).decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        place = f"byte 0x{content[error.start]:02x} in line {line}"
        advice = "save it as UTF-8, for example with iconv -f ISO-8859-1 -t UTF-8 if it is Latin-1"
        raise UserError(f"{name} is not a readable {encoding.upper()} text ({place}): {advice}") from error
    if "\0" in found:
        line = found.count("\n", 0, found.index("\0")) + 1
        advice = "save it as UTF-8, for example with iconv -f UTF-16 -t UTF-8 if it is UTF-16"
        raise UserError(f"{name} holds zero bytes in line {line}, as no text in UTF-8 does: {advice}")
    return found


def lines(content: bytes, name: str) -> Iterator[tuple[int, str]]:
    """The lines of a JSON Lines file that are not blank, by number; only newlines end a line."""
    text = decoded(content, name)
    if text.lstrip().startswith("["):
        raise UserError(f"{name}, line 1: found a JSON array, wanted one JSON object per line (jq -c '.[]' makes them)")
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line


def item(line: str, as_written: bool = True) -> dict:
    """A line's JSON object; raises `Refused` for anything else, and for keys written twice.

    Numbers are `Number`, or, if not `as_written`, Python's.
    """
    numbers = {"parse_int": Number, "parse_float": Number} if as_written else {}
    try:
        found = json.loads(line, parse_constant=_no_constant, object_pairs_hook=_unique, **numbers)
    except json.JSONDecodeError as error:
        raise Refused(f"is not JSON: {error.msg} at column {error.colno}; wanted one JSON object per line") from error
    except RecursionError as error:
        raise Refused("is nested too deeply; wanted one JSON object per line") from error
    if not isinstance(found, dict):
        raise Refused(f"found {shown(found)}, wanted a JSON object")
    return found


def _no_constant(name: str):
    raise Refused(f"found {name}, which JSON does not have; wanted text or a number")


def _unique(pairs: list[tuple[str, object]]) -> dict:
    keys = [key for key, _ in pairs]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise Refused(f"{twice}: stands twice in the line; wanted once")
    return dict(pairs)


def problems(schema: type[BaseModel], found: Mapping) -> list[str]:
    """What is wrong with an object: a message for each field, with what was found and what is wanted."""
    try:
        schema.model_validate(found)
    except ValidationError as error:
        return list(dict.fromkeys(_problem(schema, one, found) for one in error.errors(include_url=False)))
    return []


def _problem(schema: type[BaseModel], error: Mapping, found: Mapping) -> str:
    name = str(error["loc"][0])
    if error["type"] == "extra_forbidden":
        known = {key.casefold(): key for key in schema.model_fields}
        close = difflib.get_close_matches(name.casefold(), known, n=1)
        advice = f"did you mean {known[close[0]]}?" if close else f"leave it out; known: {', '.join(known.values())}"
        return f"{shown(name)}: unknown key; {advice}"
    wanted = schema.model_fields[name].description
    if error["type"] == "missing":
        return f"{name}: missing, wanted {wanted}"
    if error["type"] == "surrogate":
        return f"{name}: found {error['ctx']['code']}, half of a character (a lone surrogate); wanted whole characters"
    return f"{name}: found {shown(found[name])}, wanted {wanted}"


def shown(value: object) -> str:
    """A value as a message shows it: as JSON, shortened."""
    if isinstance(value, Number):
        return f"the number {value}"
    if isinstance(value, str) and not value.strip():
        return "empty text" if not value else "only white space"
    text = json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 60 else f"{text[:57]}..."


def refuse(name: str, found: list[str], advice: str = "") -> None:
    """Raises what is wrong with a file, if anything is: a line each for the first ones, then what to do."""
    if found:
        more = [f"... and {len(found) - MOST} more"] if len(found) > MOST else []
        raise UserError("\n".join([*(f"{name}, {one}" for one in found[:MOST]), *more, *([advice] if advice else [])]))
