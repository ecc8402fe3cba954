"""Rows that a stranger wrote: each line is JSON, has the keys and types of `Row`, and belongs to its run."""

import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from pvcbench.board.archive import Refused
from pvcbench.evaluation.row import SCHEMA, Row, not_finite
from pvcbench.runs.rows import KEY

NEEDED = (*KEY, "task", "sample_info", "cluster", "prompt_sha256", "protocol", "reference", "prompt_tokens")
NEEDED += ("kept_entries", "kept_fraction", "kv_bytes", "score", "metrics", "output", "error", "prefill_s")
WIDER = {"metrics": dict[str, object], "observed": dict[str, object] | None}  # rows of analyses and of speeds
SAME = (
    "query_aware",
    "decode",
    "refeed_last",
    "interval",
    "prompt",
    "sampling",
    "stop_repeats",
)  # what identity and rows both say of the protocol


@cache
def checks() -> dict[str, TypeAdapter]:
    """A check of every key of a row by the type that `Row` gives it; text is text and no number."""
    made = {}
    for key, hint in (get_type_hints(Row) | WIDER).items():
        try:
            made[key] = TypeAdapter(hint, config=ConfigDict(strict=True))
        except PydanticUserError as error:
            raise TypeError(f"the type of the row's key {key} cannot be checked") from error
    return made


def lines(raw: bytes, name: str) -> Iterator[dict]:
    """The objects of a file of JSON lines; raises Refused at the first line that is none."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refused(f"{name} is not UTF-8") from error
    if text and not text.endswith("\n"):
        raise Refused(f"{name} ends within a line")
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            found = json.loads(line, parse_constant=no_constant)
        except (ValueError, RecursionError) as error:
            raise Refused(f"{name}, line {number} is not JSON") from error
        if not isinstance(found, dict):
            raise Refused(f"{name}, line {number} is not a JSON object")
        yield found


def no_constant(name: str) -> None:
    """Refuses NaN and infinities, which JSON does not have."""
    raise ValueError(f"{name} is no number of JSON")


def checked(raw: bytes, name: str, identity: Mapping) -> list[dict]:
    """The rows of a file; raises Refused where one fails the schema or is of another run."""
    rows = []
    for number, row in enumerate(lines(raw, name), start=1):
        problem = wrong(row) or foreign(row, identity)
        if problem:
            raise Refused(f"{name}, line {number}: {problem}")
        rows.append(row)
    return rows


def wrong(row: Mapping) -> str | None:
    """What of a row is not as the schema has it."""
    lacking = [key for key in NEEDED if key not in row]
    if lacking:
        return f"a row without {', '.join(lacking)}"
    if row.get("schema", SCHEMA) != SCHEMA:
        return f"a row of schema {str(row['schema'])[:20]!r}, and this pvcbench reads {SCHEMA}"
    for key in row.keys() & checks().keys():
        try:
            checks()[key].validate_python(row[key])
        except ValidationError as error:
            return f"{key}: {error.errors(include_url=False, include_input=False)[0]['msg']}"
    place = next(not_finite(row), None)
    if place is not None:
        return f"{place[:80]} is not a finite number"
    if (row["score"] is None) != (row["error"] is not None) and "observed" not in row:
        return "a row has a score or an error, and not both"
    return None


def foreign(row: Mapping, identity: Mapping) -> str | None:
    """What of a row cannot be of the run with this identity."""
    task, methods, budgets = identity["task"]["name"], identity["methods"], identity["budgets"]
    if row["task"] != task:
        return f"a row of task {row['task'][:80]!r} in a run of {task!r}"
    if row["method"] is not None and row["method"] not in methods:
        return f"a row of method {row['method'][:80]!r}, which the run does not have"
    known = identity_of_budget(row["budget"])
    if known is not None and not row["reference"] and budgets and known not in map(identity_of_budget, budgets):
        return f"a row of budget {row['budget'][:80]!r}, which the run does not have"
    for key in SAME:
        said = row["protocol"].get(key)
        if key in row["protocol"] and said is not None and "name" not in row["protocol"] and said != identity.get(key):
            return f"a row with {key}={str(said)[:20]} in a run with {key}={identity.get(key)}"
    return None


def identity_of_budget(text: str | None) -> float | None:
    """A budget as a number; None for the text of a method that sets its own size."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
