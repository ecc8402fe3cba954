"""RULER's questions about documents: qa_1 is SQuAD, qa_2 HotpotQA.

A prompt holds the question's own documents and as many others as the length allows: of SQuAD those of the same article
first, then any. **Their order is drawn for each sample.** RULER shuffles every prompt by one seed, starting from the
question's own documents: at one number of documents the gold one stands at one and the same place in all prompts (with
20 documents always the 19th), and what is measured is that place.

Questions come in an order that the seed draws, RULER's in the file's, where the first 500 of SQuAD are about a few
articles. One whose own documents do not fit the length is passed over; RULER never ends there.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from pvcbench.tasks.ruler.data import Question, Questions
from pvcbench.tasks.ruler.request import Made, Request, TooFew, largest

ASK = "Answer the question based on the given documents. Only give me the answer and do not output any other words.\n\n"
GIVEN = "The following are given documents.\n\n"
SMALLEST = 8  # tokens that no document is shorter than: bounds the search


def questions_on_documents(request: Request, source: Callable[[Path | None], Questions], label: str) -> Made:
    """Questions about documents, of which a prompt holds as many as fit."""
    known = source(request.folder)
    number = chosen(request, known, label)
    asked, rng = known.items[number], request.rng
    order, places = listed(asked, len(known.documents), rng), rng.random(len(known.documents))
    make = partial(prompt, known, asked, label=label)
    shown = lambda count: make(sorted(order[:count], key=lambda one: places[one]))  # noqa: E731
    most = min(len(order), max(len(asked.own), request.length // SMALLEST))
    return shown(largest(lambda count: request.over(shown(count)) <= 0, len(asked.own), most))


def listed(asked: Question, count: int, rng: np.random.Generator) -> list[int]:
    """All documents in the order in which they are taken: the question's own, those of its article, all others."""
    near = [asked.near[place] for place in rng.permutation(len(asked.near))]
    taken = {*asked.own, *near}
    return [*asked.own, *near, *(int(one) for one in rng.permutation(count) if int(one) not in taken)]


def prompt(known: Questions, asked: Question, order: list[int], label: str) -> Made:
    """RULER's prompt with these documents in this order; the spans are those of the gold documents."""
    context, spans = ASK + GIVEN, {}
    for place, one in enumerate(order, start=1):
        context += f"Document {place}:\n"
        if one in asked.gold:
            name = f"document_{len(spans)}" if spans else "document"
            spans[name] = (len(context), len(context) + len(known.documents[one]))
        context += f"{known.documents[one]}\n\n"
    cluster = f"{label}/{min(asked.gold or asked.own)}"
    return Made(context, f"{ASK}Question: {asked.text}", "Answer:", asked.answers, spans, cluster)


def chosen(request: Request, known: Questions, label: str) -> int:
    """The number of the question: the `repeat`-th of the seed's order, from the start again, that fits the length."""
    key = (label, request.length, request.seed)
    found, rest = request.memory.setdefault(key, ([], fitting(request, known, label)))
    while len(found) <= request.repeat:
        number = next(rest, None)
        if number is None:
            break
        found.append(number)
    if not found:
        raise TooFew
    return found[request.repeat % len(found)]


def fitting(request: Request, known: Questions, label: str) -> Iterator[int]:
    """The numbers of all questions whose own documents fit, in the order of the seed."""
    for number in np.random.default_rng(request.seed).permutation(len(known.items)):
        asked = known.items[int(number)]
        if request.over(prompt(known, asked, list(asked.own), label)) <= 0:
            yield int(number)
