"""RULER's needles in essays: niah_single_2 and _3, niah_multikey_1, niah_multivalue, niah_multiquery.

As RULER's niah.py writes them: the essays' words from the first on (again from the start where they do not suffice),
needles between sentences at depths that are drawn from 40 from 0 to 100%, keys of an adjective and a noun. Here the
essay is as long as the length allows for each sample; RULER finds one length for all and shortens it by 500 words.
"""

import uuid
from bisect import bisect_left
from functools import cache
from pathlib import Path

import numpy as np

from pvcbench.tasks.ruler.data import essays
from pvcbench.tasks.ruler.lm_eval_sets import module
from pvcbench.tasks.ruler.request import Made, Request, largest
from pvcbench.tasks.ruler.sentences import ends_sentence, sentence_ends

NEEDLE = "One of the special magic {kind} for {key} is: {value}."
DEPTHS = tuple(round(float(place)) for place in np.linspace(0, 100, 40))
MANY = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n",
    "\nWhat are all the special magic {kind} for {query} mentioned in the provided text?",
    "The special magic {kind} for {query} mentioned in the provided text are",
)
ONE = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n",
    "\nWhat is the special magic {kind} for {query} mentioned in the provided text?",
    "The special magic {kind} for {query} mentioned in the provided text is",
)


def essay_needles(request: Request, kind: str = "numbers", keys: int = 1, values: int = 1, asked: int = 1) -> Made:
    """Needles in essays: so many keys with so many values each, of which some keys are asked for."""
    rng, drawn = request.rng, {}
    while len(drawn) < keys:  # a key never stands twice
        every = module("prepare_niah").WORDS  # an adjective and a noun of wonderwords
        drawn.setdefault(every[rng.integers(len(every))], tuple(_value(rng, kind) for _ in range(values)))
    pairs = [(key, value) for key, found in drawn.items() for value in found]
    order = rng.permutation(len(pairs))
    needles = [NEEDLE.format(kind=kind, key=key, value=value) for key, value in (pairs[n] for n in order)]
    depths = sorted(int(depth) for depth in rng.choice(DEPTHS, len(needles), replace=False))
    queries = [list(drawn)[n] for n in rng.permutation(keys)[:asked]]
    gold = [NEEDLE.format(kind=kind, key=key, value=value) for key in queries for value in drawn[key]]
    answers = tuple(value for key in queries for value in drawn[key])
    query = " and ".join([", ".join(queries[:-1]) + ",", queries[-1]]) if asked > 1 else queries[0]
    several = asked * values > 1
    told = {"kind": kind if several else kind[:-1], "query": query}
    head, question, prefix = (part.format(**told) for part in (MANY if several else ONE))

    def made(count: int) -> Made:
        context = f"{head}{haystack(request.folder, count, depths, needles)}\n"
        starts = [context.index(sentence) for sentence in gold]
        places = {f"needle_{n}" if n else "needle": (at, at + len(gold[n])) for n, at in enumerate(starts)}
        return Made(context, question[1:], prefix, answers, places)

    return made(largest(lambda count: request.over(made(count)) <= 0, 1, request.length))


def haystack(folder: Path | None, count: int, depths: list[int], needles: list[str]) -> str:
    """So many words of the essays with needles between their sentences, as RULER joins them: by single blanks."""
    source, ends = _prepared(folder)
    rounds = -(-count // len(source))
    every = [base * len(source) + end for base in range(rounds) for end in ends]
    every = [*every[: bisect_left(every, count)], count]
    text, first, parts = (source * rounds)[:count], 0, []
    for depth, needle in zip(depths, needles, strict=True):
        passed = int(len(every) * (depth / 100))
        last = every[passed - 1] if passed else 0
        parts += [" ".join(text[first:last]), needle]
        first = last
    return " ".join([*parts, " ".join(text[first:])])


@cache
def _prepared(folder: Path | None) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The essays' words, and where their sentences end."""
    source = essays(folder)
    last = [len(source)] if ends_sentence(source[-1], source[0]) else []
    return source, (*sentence_ends(source), *last)


def _value(rng: np.random.Generator, kind: str) -> str:
    if kind == "uuids":
        return str(uuid.UUID(bytes=rng.bytes(16), version=4))
    return str(rng.integers(10**6, 10**7 - 1, endpoint=True))
