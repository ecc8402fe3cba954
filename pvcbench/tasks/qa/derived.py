"""Columns that are made of others, for data sets whose prompts need them: `rows: {derive: NAME}`."""

import hashlib
import re
from collections.abc import Callable, Mapping

import numpy as np

from pvcbench.tasks import files
from pvcbench.tasks.qa.sources import text_of


def value_of(row: Mapping, column: str) -> object:
    """A column's value, `a.b` for b within a; raises `Refused` where there is none."""
    found: object = row
    for part in [column] if column in row else column.split("."):
        if not isinstance(found, Mapping) or part not in found:
            raise files.Refused(f"{column}: there is no such column; the row has {', '.join(map(str, row))}")
        found = found[part]
    return found


def matched(row: Mapping, column: str, pattern: str) -> re.Match:
    """Where a pattern stands in a column."""
    found = re.search(pattern, text_of(value_of(row, column)))
    if found is None:
        raise files.Refused(f"{column}: found {files.shown(text_of(row[column]))}, wanted {pattern}")
    return found


def math_find(row: Mapping) -> dict:
    """InfiniteBench's line before a list of numbers, `prefix`, from a question such as `The largest number of the`."""
    return {"prefix": f"What is {matched(row, 'input', 'The .+ of')[0].lower()[:-3]} in the following list?"}


def math_find_scbench(row: Mapping) -> dict:
    """SCBench's line before the question, `prefix`."""
    return {"prefix": f"What is {matched(row, 'input', 'The .+ is')[0].lower()[:-3]}?"}


def code_run(row: Mapping) -> dict:
    """The call that InfiniteBench asks for, `func_call`, and the name of its function, `func`."""
    call = matched(row, "input", r"func_[0-9]+\(-?[0-9]+\)")[0]
    return {"func_call": call, "func": call.partition("(")[0]}


def gold_words(row: Mapping) -> dict:
    """L-Eval's `gold_words`: how many words the right answer has, which its prompt tells."""
    return {"gold_words": str(len(text_of(value_of(row, "outputs")).split()))}


def helmet_passages(row: Mapping) -> dict:
    """HELMET's documents as `context`, and two examples with theirs as `demos`, drawn by a hash of the question."""
    key = "id" if "id" in row else "question"
    seed = int(hashlib.sha256(text_of(value_of(row, key)).encode()).hexdigest(), 16) % 2**31
    examples, chosen = row.get("examples") or [], {}
    for place in np.random.default_rng(seed).permutation(len(examples)):  # as the package `datasets` shuffles
        if len(chosen) < 2:
            chosen.setdefault(text_of(value_of(examples[place], key)), examples[place])
    shown = [
        f"{_passages(one)}\n\nQuestion: {value_of(one, 'question')}\nAnswer: {value_of(one, 'answers')[0]}\n\n"
        for one in chosen.values()
    ]
    return {"context": _passages(row), "demos": "".join(shown)}


def _passages(row: Mapping) -> str:
    found = value_of(row, "ctxs")
    if not isinstance(found, list) or not all({"title", "text"} <= set(one) for one in found):
        raise files.Refused("ctxs: wanted a list of documents with title and text")
    return "\n\n".join(f"Document (Title: {text_of(one['title'])}): {text_of(one['text'])}" for one in found)


def helmet_pairs(row: Mapping) -> dict:
    """HELMET's two examples of its key and value task, `demos`, from the row itself."""
    pairs = value_of(row, "demos")
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise files.Refused("demos: wanted a list of pairs of a key and a value")
    texts = [f"Key: {key}\nCorresponding value: {value}" for key, value in pairs[:2]]
    return {"demos": "\n\n".join(texts) + "\n\n" * bool(texts)}


def lost_pairs(row: Mapping) -> dict:
    """The context of lost-in-the-middle's own files: one pair a line, in the order of the file."""
    pairs = value_of(row, "ordered_kv_records")
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise files.Refused("ordered_kv_records: wanted a list of pairs of a key and a value")
    return {"context": "{" + ",\n ".join(f'"{key}": "{value}"' for key, value in pairs) + "}"}


DERIVED: dict[str, Callable[[Mapping], dict]] = {
    function.__name__: function
    for function in (math_find, math_find_scbench, code_run, gold_words, helmet_passages, helmet_pairs, lost_pairs)
}
