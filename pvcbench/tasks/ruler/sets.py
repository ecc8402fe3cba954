"""RULER's thirteen sets by name: tokens to generate, the generator and its settings, and the file that it reads."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pvcbench.tasks.ruler import data
from pvcbench.tasks.ruler.documents import questions_on_documents
from pvcbench.tasks.ruler.lm_eval_sets import cwe, fwe, niah, vt
from pvcbench.tasks.ruler.needles import essay_needles


@dataclass(frozen=True)
class Set:
    """One set. Of lm-eval's generators it says where the question starts, too; `file` is what the others read."""

    tokens: int
    make: Callable
    question: str = ""
    span: str | None = None  # the pattern of a gold sentence, by its answer
    joint: str = " "  # lm-eval's target_delimiter: between question and prefix where there is no chat template
    ending: str = ""  # what RULER's prefix ends with and lm-eval's does not
    file: str | None = None
    metric: str = "string_match_all"


def needles(haystack: str, keys: str, values: str) -> Set:
    """A set of lm-eval's needles: numbers or UUIDs as values of words or UUIDs."""
    made = partial(niah, type_haystack=haystack, type_needle_k=keys, type_needle_v=values)
    return Set(128, made, "What ", r"One of the special magic \w+ for [^:\n]+ is: {}\.")


def essays(**settings: object) -> Set:
    """A set of needles in essays."""
    return Set(128, partial(essay_needles, **settings), file=data.ESSAYS)


def documents(source: Callable, file: str, label: str) -> Set:
    """A set of questions about documents."""
    make = partial(questions_on_documents, source=source, label=label)
    return Set(32, make, file=file, metric="string_match_part")


DEFAULT = ("niah_single_1", "niah_multikey_2", "niah_multikey_3", "vt", "cwe", "fwe")  # need no essays and questions
SETS = {
    "niah_single_1": needles("repeat", "words", "numbers"),
    "niah_single_2": essays(),
    "niah_single_3": essays(kind="uuids"),
    "niah_multikey_1": essays(keys=4),
    "niah_multikey_2": needles("needle", "words", "numbers"),
    "niah_multikey_3": needles("needle", "uuids", "uuids"),
    "niah_multivalue": essays(values=4),
    "niah_multiquery": essays(keys=4, asked=4),
    "vt": Set(30, vt, "Question: Find all variables", r"VAR {} = (?:VAR )?\w+", ending=" "),
    "cwe": Set(120, cwe, "Question: What are the 10", joint="\n\n"),
    "fwe": Set(50, fwe, "Question: Do not provide"),
    "qa_1": documents(data.squad, data.SQUAD, "qa_1"),
    "qa_2": documents(data.hotpotqa, data.HOTPOT, "qa_2"),
}
READERS = {data.ESSAYS: data.essays, data.SQUAD: data.squad, data.HOTPOT: data.hotpotqa}
