"""Conversations: what a later turn adds to the prompt before it, as tokens.

The first turn's prompt is that of a question by itself. Every later turn adds two pieces: the answer to the turn
before, and what is asked next, with what the chat template writes around it. A template that writes earlier turns
otherwise once later ones follow is refused: a cache that has read them cannot be changed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from pvcbench.errors import UserError
from pvcbench.tasks.base import Sample, Turn
from pvcbench.tasks.chat import MARKER, Chat

ANSWER, NEXT = "THE-MODELS-ANSWER", "THE-USERS-NEXT-MESSAGE"


@dataclass(frozen=True)
class Exchange:
    """What a later turn adds: the tokens of the answer before it, and of what it asks, up to its own answer."""

    answer: tuple[int, ...]
    asked: tuple[int, ...]


@dataclass(frozen=True)
class Joint:
    """What stands between an answer and the next question, and between that and its answer."""

    before: str
    after: str

    @classmethod
    def of(cls, template: Chat) -> "Joint":
        """That of a chat template, which must do no more than append, however many turns there are."""
        before, after = template.frame()
        two = template.render(messages([Turn("", ANSWER), Turn(NEXT, "")]))
        tail = two.removeprefix(before + MARKER + after + ANSWER)
        between, found, end = tail.partition(NEXT)
        again = f"{ANSWER}{between}{NEXT}{end}"
        if not found or tail == two or template.render(messages(THREE)) != before + MARKER + after + again + again:
            raise UserError(
                "the chat template writes earlier turns of a conversation otherwise once later ones follow (without "
                "their thoughts, for instance), so no cache can go on from them: set model.chat=false"
            )
        return cls(between, end)


THREE = [Turn("", ANSWER), Turn(NEXT, ANSWER), Turn(NEXT, "")]


def messages(turns: Sequence[Turn]) -> list[dict]:
    """A conversation as a chat template takes it, up to its last question; a marker stands for the first."""
    found = [{"role": "user", "content": MARKER}]
    for before, now in pairwise(turns):
        found += [{"role": "assistant", "content": before.answer}, {"role": "user", "content": now.question}]
    return found


def first_of(sample: Sample) -> Sample:
    """A conversation's first turn as a question by itself, with this turn's spans."""
    return replace(sample, question=sample.turns[0].question, turns=(), turn=0)


def later(sample: Sample, joint: Joint, tokenizer, template: Chat | None) -> list[Exchange]:
    """What the turns after the first add, up to this one, with golden answers between them.

    In a chat the tokens are those of the whole conversation, and refused where one lies across the end of a piece, or
    where the template changes a text. Without a chat every piece is tokenized by itself.
    """
    turns = sample.turns[: sample.turn]
    texts = [(before.answer, f"{joint.before}{now.question}{joint.after}") for before, now in pairwise(turns)]
    if template is None:
        return [Exchange(*(tuple(bare(tokenizer, part)) for part in pair)) for pair in texts]
    if not texts:
        return []
    before, after = template.frame()
    whole = f"{before}{MARKER}{after}{''.join(part for pair in texts for part in pair)}"
    if template.render(messages(turns)) != whole:
        raise UserError(
            f"sample {sample.id}: the chat template changes a question or an answer of an earlier turn, so that the "
            "conversation cannot be told apart in its text: take white space from their ends, or set model.chat=false"
        )
    return split(tokenizer, after, texts, sample.id)


def split(tokenizer, start: str, texts: Sequence[tuple[str, str]], name: str) -> list[Exchange]:
    """The tokens of pieces of text behind a start, as they are where all of it is tokenized at once."""
    coded = tokenizer(start + "".join(a + b for a, b in texts), add_special_tokens=False, return_offsets_mapping=True)
    ids, ends, opening = coded["input_ids"], np.asarray(coded["offset_mapping"])[:, 1], bare(tokenizer, start)
    edges = np.cumsum([len(start), *(len(part) for pair in texts for part in pair)])
    stops = [int((ends <= edge).sum()) for edge in edges]
    straight = ids[: stops[0]] == opening and all(
        stop and ends[stop - 1] == edge for stop, edge in zip(stops, edges, strict=True)
    )
    if not straight:
        raise UserError(
            f"sample {name}: the tokenizer joins the end of a turn with what follows it, so that no cache can end "
            "there: set model.chat=false"
        )
    parts = [tuple(ids[first:last]) for first, last in pairwise(stops)]
    return [Exchange(answer, asked) for answer, asked in zip(parts[::2], parts[1::2], strict=True)]


def bare(tokenizer, text: str) -> list[int]:
    """The tokens of a text alone, without special ones."""
    return tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
