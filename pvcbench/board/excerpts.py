"""Excerpts of prompts in a submission: no more of a text than pvcbench itself stores, which may be under a licence."""

from collections.abc import Iterable, Mapping

from pvcbench.board.archive import Refused
from pvcbench.runs.prompt_excerpts import AROUND, ENDS, LONGEST_QUESTION, MOST_SPANS

MOST_TOKENS = 2 * ENDS + 4 * AROUND * MOST_SPANS
MOST_LETTERS = 40 * MOST_TOKENS  # a token may stand for a long word or many spaces


def check_excerpts(found: Iterable[Mapping], name: str) -> dict[str, dict]:
    """Excerpts by sample; raises Refused where one holds more than is ever stored, or is none."""
    made = {}
    for number, one in enumerate(found, start=1):
        problem = wrong(one)
        if problem:
            raise Refused(f"{name}, line {number}: {problem}")
        made[one["sample"]] = dict(one)
    return made


def wrong(one: Mapping) -> str | None:
    """What is wrong with an excerpt."""
    pieces, question = one.get("excerpt"), one.get("question")
    if not isinstance(one.get("sample"), str) or not isinstance(pieces, list) or not isinstance(question, str):
        return "no excerpt of a prompt"
    for piece in pieces:
        ends = (piece.get("from"), piece.get("to")) if isinstance(piece, dict) else ()
        if len(ends) != 2 or not all(type(end) is int for end in ends) or not isinstance(piece.get("text"), str):
            return "no excerpt of a prompt"
    tokens = sum(piece["to"] - piece["from"] for piece in pieces)
    letters = sum(len(piece["text"]) for piece in pieces)
    if tokens > MOST_TOKENS or letters > MOST_LETTERS or len(question) > LONGEST_QUESTION:
        return "it holds more of a prompt than pvcbench stores, and the text may be under a licence"
    return None
