"""lm-eval's requests through the compressed cache: one prefill for each distinct context, shared by all its requests.

A continuation is scored after the context but its last token was compressed: that token and the continuation go
through the compressed cache, so that even answers of one token depend on the method. A context of one token (lm-eval's
prefix of an empty context) is not compressed, and the first token after it comes from its prefill.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import torch

from pvcbench.engine.engine import Engine
from pvcbench.engine.teacher_forcing import Scored
from pvcbench.errors import Inexact
from pvcbench.evaluation.cells import Point
from pvcbench.evaluation.endings import Ending
from pvcbench.evaluation.generation import Generate
from pvcbench.evaluation.item import WorkItem
from pvcbench.evaluation.likelihood import Streaming
from pvcbench.evaluation.row import OVER_TIME, Protocol, broken
from pvcbench.evaluation.shared_prefill import Attempt, run_batch
from pvcbench.models.loaded import LoadedModel
from pvcbench.tasks.base import Sample, Task
from pvcbench.tasks.lm_eval.requests import Part
from pvcbench.tasks.lm_eval.task import LmEval
from pvcbench.tasks.prompts import Prompt

RECORDS = {  # what rows say of the protocol of their requests
    "continuation": {"query_aware": None, "refeed_last": True},
    "streaming": {"query_aware": None, "first_token_uncompressed": False, "decode": "hold", "every": 1},
    "generate": {},
}
SIZES = ("budget_entries", "kept_entries", "kept_fraction", "kv_bytes", "state_bytes", "carried_bytes", "prefill_s")
SIZES += OVER_TIME


@dataclass(frozen=True)
class Question(Sample):
    """A context and all that is asked of it."""

    parts: tuple[Part, ...] = ()


class Likelihood(Attempt):
    """Scores every continuation of a context, each on a fork of its own."""

    one_decoding = False

    @staticmethod
    def compressed(protocol, prompt):
        return max(1, len(prompt.ids) - 1)

    def room_needed(self):
        return self.rest.shape[1] + max(len(part.continuation) for part in self.samples[0].parts) - 1

    def whole(self):
        """Of the longest continuation; they share a prefill, so that none may be rotated by other tables."""
        lengths = [len(part.continuation) - 1 for part in self.samples[0].parts]
        shortest, longest = (super(Likelihood, self).whole() + count for count in (min(lengths), max(lengths)))
        if self.engine.reach.differs(shortest, longest):
            raise Inexact(self.engine.reach.refusal(shortest, longest))
        return longest

    def answer(self, groups, rows):
        found = [[] for _ in rows]
        for number, part in enumerate(self.samples[0].parts):
            if number:  # scoring has filled the slots of the fork before
                groups = [own for group in groups for own in self.engine.fork(group.prefill, group.cells, self.room)]
            scored = self._score(groups, torch.tensor([part.continuation], device=self.engine.device))
            for answers, logprobs, greedy in zip(found, scored.logprobs, scored.greedy, strict=True):
                answers.append([float(logprobs.double().sum()), bool(greedy.all())])
        for (_, row), answers in zip(rows, found, strict=True):
            sound = all(math.isfinite(total) for total, _ in answers)
            row.update({"responses": answers} if sound else broken(row))

    def _score(self, groups, wanted) -> Scored:
        """The likelihood of each token, by row; the first comes from the prefill where no token is left to feed."""
        if self.rest.shape[1]:
            return self.engine.score(groups, torch.cat((self.rest, wanted[:, :-1]), 1), wanted)
        logits = torch.cat([group.prefill.logits.repeat(len(group.cells), 1) for group in groups])[:, None]
        first = Scored.of(logits, wanted[:, :1].expand(len(logits), 1))
        if wanted.shape[1] == 1:
            return first
        return Scored.cat([first, self.engine.score(groups, wanted[:, :-1], wanted[:, 1:])])


class Written(Generate):
    """Generates after a context; responses are the tokens, their text is the task's affair."""

    @staticmethod
    def compressed(protocol, prompt):
        return max(1, len(prompt.ids) - int(protocol.refeed_last))

    def allowed(self):
        return [self.samples[0].parts[0].new_tokens]

    def answer(self, groups, rows):
        tokenizer, parts = self.loaded.tokenizer, self.samples[0].parts
        answers, seconds = self.engine.greedy(
            groups,
            feed=self.rest if self.rest.shape[1] else None,
            new_tokens=parts[0].new_tokens,
            ends=self.loaded.ends,
            stopped=Ending(tokenizer.decode, parts[0].stop),
            limits=self.longest_answers(groups),
        )
        for (_, row), [tokens] in zip(rows, answers, strict=True):
            if tokens is None:
                row.update(broken(row))
                continue
            row |= {"responses": [tokens] * len(parts), "decode_s": seconds if len(rows) == 1 else None}


class Reading(Streaming):
    """Reads a window under the budget, which holds after every token; the response is its log-likelihood."""

    def _stream(self, point, cell):
        scored, group = self.engine.stream(self.context, cell, 1, self.draws)
        parts = self.samples[0].parts
        total = float(scored.logprobs[0, -len(parts[0].continuation) :].double().sum())
        row = self.row(group, 0, point, 0) | {"prefill_s": None}
        return [row | {"responses": [[total, None]] * len(parts)} if math.isfinite(total) else broken(row)]


KINDS: dict[str, type[Attempt]] = {"continuation": Likelihood, "generate": Written, "streaming": Reading}


def together(parts: Sequence[Part]) -> list[list[int]]:
    """The numbers of the parts that one prefill serves: continuations of one context, and parts that are equal."""
    found: dict[object, list[int]] = {}
    for number, part in enumerate(parts):
        found.setdefault(part.context if part.protocol == "continuation" else part, []).append(number)
    return list(found.values())


def respond(
    engine: Engine,
    loaded: LoadedModel,
    task: Task,
    sample: Sample,
    parts: Sequence[Part],
    points: Sequence[Point],
    protocol: Protocol,
    meter,
) -> list[dict]:
    """One row per point for parts that share a context, their answers in its `responses`.

    Answers are `[log-likelihood, greedy]`, or the tokens generated.
    """
    first = parts[0]
    prompt = Prompt(first.context, max(1, len(first.context) - 1))
    if first.protocol == "streaming":
        prompt = Prompt(first.context + first.continuation, len(first.context + first.continuation))
    elif len(first.context) == 1 and first.protocol == "continuation":
        points = [replace(point, budget=1.0) for point in points]  # nothing to compress
    fields = {**vars(sample), "id": prompt.sha256, "max_new_tokens": first.new_tokens}
    question = Question(**fields, parts=tuple(parts))
    return run_batch(
        KINDS[first.protocol], engine, loaded, task, [WorkItem(question, prompt, tuple(points))], protocol, meter
    )


def run_documents(
    engine: Engine,
    loaded: LoadedModel,
    task: LmEval,
    batch: Sequence[WorkItem],
    protocol: Protocol,
    meter,
) -> list[dict]:
    """The rows of some documents of lm-eval tasks, for all cells they lack; documents run one by one."""
    return [
        row for item in batch for row in document_rows(engine, loaded, task, item.sample, item.points, protocol, meter)
    ]


def document_rows(engine, loaded, task, sample, points, protocol, meter) -> Iterator[dict]:
    """One row per cell of a document, made of the rows of its contexts."""
    requests = task.requests(sample)
    parts = [part for request in requests for part in request]
    shared, cells = together(parts), {(point.name, point.label): [] for point in points}
    for number, members in enumerate(shared):
        own = SimpleNamespace(step=lambda share, done=number: meter.step((done + share) / len(shared)))
        for row in respond(engine, loaded, task, sample, [parts[m] for m in members], points, protocol, own):
            cells[row["method"], row["budget"]].append((members, row))
    for answered in cells.values():
        row = merged(sample, parts, [row for _, row in answered])
        if row["error"] is None:
            found = {
                m: answer for members, own in answered for m, answer in zip(members, own["responses"], strict=True)
            }
            try:
                row["responses"] = responses = assembled(task, requests, found)
                row |= task.measured(sample, responses)
            except Exception as error:
                row |= broken(row, error)
        yield row


def assembled(task: LmEval, requests: Sequence[Sequence[Part]], found: dict[int, list]) -> list:
    """The response to each request, in JSON's types, from the answers of its parts by number."""
    responses, first = [], 0
    for request in requests:
        answers = [found[first + number] for number in range(len(request))]
        first += len(request)
        if request[0].protocol == "generate":
            responses.append(task.text(request[0], answers[0]))
        else:
            rolling = request[0].protocol == "streaming"
            responses.append(sum(total for total, _ in answers) if rolling else answers[0])
    return responses


def merged(sample: Sample, parts: Sequence[Part], rows: Sequence[dict]) -> dict:
    """A document's row from those of its contexts: sizes are means, of one-token contexts only if there are no others.

    An error in one context is the document's.
    """
    broken = [row for row in rows if row["error"] is not None]
    chosen = [row for row in rows if row["prompt_tokens"] > 1] or rows
    protocols = list(dict.fromkeys(part.protocol for part in parts))
    record = rows[0]["protocol"] | {"first_token_uncompressed": any_first(rows)}
    record |= RECORDS[protocols[0]] if len(protocols) == 1 else {}
    row = (broken or chosen)[0] | {"sample": sample.id, "cluster": sample.cluster or sample.id, "responses": None}
    row |= {"prompt_sha256": digest(parts), "protocol": record | {"name": "+".join(protocols)}}
    for name in ("prompt_tokens", "question_tokens"):
        row[name] = round(mean([one[name] for one in chosen]))
    if not broken:
        row |= {name: mean([one[name] for one in chosen]) for name in SIZES}
        row["decode_s"] = rows[0]["decode_s"] if len(rows) == 1 else None
    return row


def any_first(rows: Sequence[dict]) -> bool:
    return any(row["protocol"]["first_token_uncompressed"] for row in rows)


def mean(values: Sequence[float | None]) -> float | None:
    """The mean, or None where a value is missing; a single value as it is."""
    if any(value is None for value in values):
        return None
    return values[0] if len(values) == 1 else sum(values) / len(values)


def digest(parts: Sequence[Part]) -> str:
    """A hash of all token ids of a document's requests."""
    ids = [token for part in parts for token in (*part.context, -1, *part.continuation, -2)]
    return hashlib.sha256(np.asarray(ids, dtype=np.int64).tobytes()).hexdigest()
