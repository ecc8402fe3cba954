"""Rows: one sample in one cell, and what each of their keys says."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypedDict

from pvcbench.engine.evict import Cell
from pvcbench.engine.sampling import Sampling
from pvcbench.errors import NOT_FINITE, NotFinite, OutOfReach
from pvcbench.evaluation.cells import Point, answer_room
from pvcbench.evaluation.endings import Repeats
from pvcbench.evaluation.item import WorkItem
from pvcbench.policy import Shape
from pvcbench.stats.failures import FAILED, OUT_OF_REACH
from pvcbench.tasks.base import Sample, Task
from pvcbench.tasks.prompts import Prompt

SCHEMA = 1  # raised when a key of `Row` changes its meaning


class Row(TypedDict, total=False):
    """What every row has; tasks and analyses add keys of their own, which are listed last."""

    schema: int  # the version of this schema; rows of before it have none
    task: str  # the task's name
    sample: str  # the id of the sample within its run
    sample_info: dict[str, object]  # what the task says of the sample: its depth, length, turn of a conversation, ...
    cluster: str  # samples of one cluster are drawn together when intervals are computed
    stratum: str  # the data set of the sample; means are taken within a stratum first
    prompt_sha256: str  # a hash of the prompt's token ids
    protocol: dict[str, object]  # how the prompt met the cache: query_aware, decode, refeed_last and the task's own
    method: str | None  # the name of the method; null in what an analysis observes without one
    budget: str | None  # the budget as it was asked for: entries, or a share of the compressed tokens
    reference: bool  # whether the cell is the full cache
    reads: str | None  # what the method reads: "prompt", or for leaking references "answer" or "future"
    budget_entries: int | None  # the budget in entries of each KV head; null for the full cache
    prompt_tokens: int  # tokens of the prompt, its question included
    question_tokens: int  # tokens after the context
    kept_entries: float | None  # entries kept, mean over layers that evict and their KV heads
    kept_fraction: float | None  # the same as a share of the compressed tokens
    evicted_layers: list[int]  # the layers that evict
    kv_bytes: int | None  # bytes of all keys, values and recurrent states that the cell keeps
    state_bytes: int | None  # bytes that the method keeps beside them: totals, query rows, sinks
    carried_bytes: int | None  # the part of kv_bytes that recurrent and convolution layers carry
    decoding_entries: float | None  # entries a decoding step attends to: mean over steps, evicting layers, heads
    decoding_entries_peak: float | None  # the most of them in any step; all four are null where none was made
    decoding_bytes: float | None  # bytes of keys, values and recurrent states in a decoding step, mean over steps
    decoding_bytes_peak: float | None  # the most of them in any step
    spans_kept: dict[str, list[float]]  # for each named span of the prompt the share kept, by layer
    score: float | None  # the task's first metric; null where the cell gave no result
    metrics: dict[str, float]  # all metrics by name
    output: str | None  # what the model answered
    decode_s: float | None  # seconds of decoding; null where several cells stepped together
    peak_bytes: int | None  # the largest memory in use, where it is measured
    answers: list[str]  # the right answers
    prefill_s: float | None  # seconds of the prefill: its share, where a batch or questions on one context share it
    measured_in: str  # copied rows: the id of the run that measured it, alike in all that changes the number (`reuse`)
    error: str | None  # why there is no result, in a sentence
    reason: str | None  # the same as a word: "out of reach" or "failed"
    reach: float | None  # the smallest share of the cache that the method can keep, where that is the reason
    problem: str  # sampled answers: the id of the sample that this is one of several answers to
    draw: int  # sampled answers: the number of this one
    answer_tokens: int  # generated answers: their tokens, without the one that ends them
    truncated: bool  # generated answers: whether the answer was cut where it came to its greatest length
    looping: bool  # generated answers: whether it ends in tokens that stand in it several times (`stop_repeats`)
    token_nll: list[float]  # perplexity: the negative log-likelihood of each token, in nats
    responses: list  # lm-eval: the response to each request of a document
    observed: dict[str, object]  # analyses: what was observed
    repeats: dict[str, list]  # throughput: each repeat's own numbers
    session: str  # throughput: when the cells that took turns began
    search: dict[str, object] | None  # throughput: how the largest batch was found


OVER_TIME = ("decoding_entries", "decoding_bytes", "decoding_entries_peak", "decoding_bytes_peak")
EMPTY = {"score": None, "metrics": {}, "output": None, "decode_s": None, "peak_bytes": None}
EMPTY |= dict.fromkeys(OVER_TIME)


@dataclass(frozen=True)
class Protocol:
    """How prompts meet the cache; every row says it, so that no two curves mix protocols by accident."""

    query_aware: bool
    refeed_last: bool
    decode: str
    seed: int
    interval: int = 1
    prompt: str = "counted"
    sampling: Sampling | None = None  # None: answers are greedy
    stop_repeats: Repeats | None = None
    history: str = "golden"  # of conversations: what stands before a later turn, the right answers or the model's own
    recompress: bool = False  # of conversations: whether each turn's whole prompt is read and compressed anew

    @property
    def eviction(self) -> dict:
        """When entries go while decoding, and whether the prompt's may: empty where that is after every token."""
        usual = {"interval": 1, "prompt": "counted"}
        return {key: value for key, value in vars(self).items() if key in usual and value != usual[key]}

    @property
    def answering(self) -> dict:
        """How answers are drawn and when a repeating one is stopped: empty where they are greedy and never are."""
        return {
            name: dict(vars(value))
            for name, value in {"sampling": self.sampling, "stop_repeats": self.stop_repeats}.items()
            if value is not None
        }

    @property
    def draws(self) -> int | None:
        """How many answers each sample gets; None where the one that it gets is greedy."""
        return None if self.sampling is None else self.sampling.n

    @property
    def turns(self) -> dict:
        """How the turns of a conversation meet the cache, where that is not the usual way."""
        usual = {"history": "golden", "recompress": False}
        return {key: value for key, value in vars(self).items() if key in usual and value != usual[key]}

    def compressed(self, prompt: Prompt) -> int:
        """Tokens of a prompt that are compressed: of a later turn those of the first, unless it is compressed anew."""
        if self.recompress and prompt.first_tokens:
            return len(prompt.ids) - self.refeed_last if self.query_aware else prompt.told_tokens
        whole = prompt.first_tokens or len(prompt.ids)
        return whole - self.refeed_last if self.query_aware else prompt.context_tokens

    def question(self, prompt: Prompt, tokens: int) -> int:
        """How many of so many compressed tokens are the question's."""
        return max(0, tokens - (prompt.told_tokens if self.recompress else prompt.context_tokens))

    def most_tokens(self, sample: Sample, prompt: Prompt) -> int:
        """The most tokens that a sample's prompt and answer can have: own answers may be as long as is allowed."""
        if self.history == "golden":
            return len(prompt.ids) + sample.max_new_tokens
        asked = sum(len(one.asked) for one in prompt.exchanges)
        start = prompt.first_tokens or len(prompt.ids)
        return start + asked + (len(prompt.exchanges) + 1) * sample.max_new_tokens

    def shared(self, prompt: Prompt) -> int:
        """Tokens that several questions on one context, or turns of one conversation, have compressed together."""
        if prompt.first_tokens:
            return 0 if self.recompress else self.compressed(prompt)
        return 0 if self.query_aware else prompt.context_tokens

    def shares(self, item: WorkItem) -> tuple[str, str] | None:
        """What of an item is compressed for others too, where they name it alike; None where nothing is.

        Contexts before their questions, first turns before later ones, and the prompts of drawn answers.
        """
        tokens = self.shared(item.prompt)
        named = (tokens > 0 and item.sample.context_id) or item.sample.problem
        return (named, item.prompt.start_sha256(tokens or self.compressed(item.prompt))) if named else None

    def cell(self, point: Point, shape: Shape, of: int | None = None) -> Cell:
        """A point under this protocol, shares being those `of` so many tokens; raises OutOfReach."""
        cell = point.cell(shape, self.decode == "hold", self.interval, self.prompt == "protected", of)
        prompt = shape.tokens + self.refeed_last
        room = answer_room(cell, prompt)
        if room is not None and room < 1:
            raise OutOfReach(
                f"{cell.budget} entries are too few: the prompt alone has {prompt} tokens, and nothing of it is evicted"
            )
        return cell

    def record(self, task: Task, fed: int) -> dict:
        """What a row says of its protocol."""
        record = {"query_aware": self.query_aware, "decode": self.decode, "refeed_last": self.refeed_last}
        record |= {"history": self.history, "recompress": self.recompress} if task.has_turns else {}
        record |= self.eviction | self.answering | {"first_token_uncompressed": fed == 0, "thinking": task.thinking}
        return record | task.protocol_record()


def label(point: Point) -> dict:
    """Which cell a row is of, whether that is the full cache, and what its method reads: the prompt or what follows."""
    method, known = point.method, {"method": point.name, "budget": point.label}
    if method is None:
        return known | {"reference": False, "reads": None}
    return known | {"reference": method.reference, "reads": method.reads or "prompt"}


def base_row(
    task: Task, item: WorkItem, point: Point, protocol: Protocol, shape: Shape, error: OutOfReach | str | None
) -> Row:
    """The columns known before a cell runs; the others null."""
    sample, prompt, unreached = item.sample, item.prompt, isinstance(error, OutOfReach)
    return {
        "schema": SCHEMA,
        "task": task.name,
        "sample": sample.id,
        **({} if sample.draw is None else {"problem": sample.problem, "draw": sample.draw}),
        "sample_info": dict(sample.info) | ({"turn": sample.turn} if sample.turn else {}),
        "cluster": sample.cluster or sample.context_id or sample.id,
        "stratum": sample.stratum,
        "prompt_sha256": prompt.sha256,
        "protocol": protocol.record(task, len(prompt.ids) - shape.tokens),
        **label(point),
        "budget_entries": None,
        "prompt_tokens": len(prompt.ids),
        "question_tokens": len(prompt.ids) - prompt.context_tokens,
        "kept_entries": None,
        "kept_fraction": None,
        "evicted_layers": list(shape.evicted),
        "kv_bytes": None,
        "state_bytes": None,
        "carried_bytes": None,
        "spans_kept": {},
        **EMPTY,
        "answers": list(sample.answers),
        "prefill_s": None,
        "error": None if error is None else str(error),
        "reason": None if error is None else OUT_OF_REACH if unreached else FAILED,
        "reach": error.reach if unreached else None,
    }


def broken(row: Row, error: Exception | None = None) -> Row:
    """The row of a cell that gave no result: by default because the model's logits were not finite."""
    said = explain(NotFinite(NOT_FINITE) if error is None else error)
    return row | EMPTY | {"error": said, "reason": FAILED, "reach": None}


def finite(row: Row) -> Row:
    """The row, or one that says which of its numbers is NaN or infinite: such a number is no result."""
    place = next(not_finite(row), None)
    return row if place is None else broken(cleared(row), NotFinite(f"{place} is not a finite number: {NOT_FINITE}"))


def not_finite(value, place: str = "") -> Iterator[str]:
    """Where in a row's value numbers are NaN or infinite, as keys joined by dots."""
    if isinstance(value, float) and not math.isfinite(value):
        yield place
    elif isinstance(value, dict | list | tuple):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from not_finite(part, f"{place}.{key}" if place else str(key))


def cleared(value):
    """A value without its numbers that are not finite: null in their places."""
    if isinstance(value, dict):
        return {key: cleared(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [cleared(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def explain(error: Exception) -> str:
    """One line for a row."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"
