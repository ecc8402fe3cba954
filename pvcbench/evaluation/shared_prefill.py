"""Runs some cells of a batch once: each distinct prefill once, forks of it, a row per sample and cell.

Questions on one context share its prefill and its compressed caches as well, and so do several sampled answers to one
prompt: each goes through copies. What happens on the forked caches is the kind's: `generation.py` decodes,
`likelihood.py` scores given tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch

from pvcbench.engine.engine import Engine
from pvcbench.engine.evict import Cell, Group
from pvcbench.engine.lookahead import foresee
from pvcbench.errors import Inexact, OutOfReach, UserError
from pvcbench.evaluation.cells import Point
from pvcbench.evaluation.item import WorkItem
from pvcbench.evaluation.row import OVER_TIME, Protocol, Row, base_row, broken, explain
from pvcbench.models.loaded import LoadedModel
from pvcbench.tasks.base import Sample, Task
from pvcbench.tasks.prompts import Prompt


def run_batch(
    kind: type["Attempt"],
    engine: Engine,
    loaded: LoadedModel,
    task: Task,
    batch: Sequence[WorkItem],
    protocol: Protocol,
    meter,
) -> list[Row]:
    """The rows of some samples with equally long prompts, or with one context, for all cells they lack.

    Cells and samples that fail together are tried again one by one, so that one that cannot run sinks no other.
    """
    one = of_one_context(engine, kind, protocol, batch)
    if not one and len(alike(batch, len(batch))) > 1:  # rotary tables differ: a context by itself for each question
        return [row for item in batch for row in run_batch(kind, engine, loaded, task, [item], protocol, meter)]
    tokens, prompt = kind.compressed(protocol, batch[0].prompt), batch[0].prompt
    shape = engine.shape(tokens, min(prompt.frame_tokens, tokens), protocol.question(prompt, tokens))
    of = kind.compressed(protocol, prompt.at(1)) if prompt.first_tokens else tokens  # whose share a budget is
    cells, rows, points = {}, [], batch[0].points
    if one:  # what reads on after the context reads something else for each question
        alone = tuple(point for point in points if point.method.reads is not None)
        points = tuple(point for point in points if point not in alone)
        for item in batch if alone else ():
            rows += run_batch(kind, engine, loaded, task, [item.of(*alone)], protocol, meter)
    for point in points:
        try:
            cells[point] = protocol.cell(point, shape, of)
        except OutOfReach as error:
            rows += [base_row(task, item, point, protocol, shape, error) for item in batch]
    attempt = kind.maker(protocol, batch, one)(engine, loaded, task, batch, protocol, shape)
    rows += attempt.run(cells, meter)
    for items, points, error in attempt.failed:
        if len(points) == len(items) == 1:
            rows.append(base_row(task, items[0], points[0], protocol, shape, error))
            continue
        for item in items:
            for point in points:
                rows += run_batch(kind, engine, loaded, task, [item.of(point)], protocol, meter)
    return rows


def of_one_context(engine: Engine, kind: type["Attempt"], protocol: Protocol, batch: Sequence[WorkItem]) -> bool:
    """Whether all compress the same: a context before its questions, a first turn, or the prompt of draws."""
    if len(batch) == 1 or None in (known := {protocol.shares(item) for item in batch}):
        return False
    if not batch[0].sample.problem and not kind.asks_on(protocol, batch[0].prompt):
        return False
    lengths = [len(item.prompt.ids) for item in batch]
    return len(known) == 1 and not engine.reach.differs(min(lengths), max(lengths))


class Attempt:
    """Prefill, fork, and answer in waves that fit into memory; a kind says how it answers."""

    one_decoding = True  # whether a cell's caches are decoded on once, so that their sizes over time are the row's

    @staticmethod
    def asks_on(protocol: Protocol, prompt: Prompt) -> bool:
        """Whether what is compressed is a context to which questions are put later, or a first turn before others."""
        return False

    @classmethod
    def maker(cls, protocol: Protocol, batch: Sequence[WorkItem], one: bool) -> Callable[..., "Attempt"]:
        """What runs a batch; `one` where its samples share what is compressed."""
        return partial(OneContext, cls) if one else cls

    @staticmethod
    def compressed(protocol: Protocol, prompt: Prompt) -> int:
        """Tokens that are prefilled and compressed; the rest is fed through the compressed cache."""
        raise TypeError("this kind does not say what it compresses")

    def room_needed(self) -> int:
        """Tokens that the caches take beside the compressed ones."""
        raise TypeError(f"{type(self).__name__} does not say how much room it needs")

    def fed(self) -> int:
        """The most tokens that go at once through the cache of a cell that holds."""
        return 1

    def whole(self) -> int:
        """Tokens of the whole sequence, by which some models choose their rotary tables: the prompt's, unless more."""
        return self.context.shape[1] + self.rest.shape[1]

    def answer(self, groups: Sequence[Group], rows: Sequence[tuple[Sample, dict]]) -> None:
        """Runs the cells of these groups and completes their rows, which come by group, cell and sample."""
        raise TypeError(f"{type(self).__name__} does not answer")

    def __init__(self, engine, loaded, task, batch, protocol, shape):
        self.engine, self.loaded, self.task, self.batch, self.protocol = engine, loaded, task, batch, protocol
        self.shape = shape
        self.samples = [item.sample for item in batch]
        ids = torch.tensor([item.prompt.ids for item in batch], device=engine.device)
        self.context, self.rest = ids[:, : shape.tokens], ids[:, shape.tokens :]
        self.room = self.room_needed()
        names = [sample.context_id or sample.problem or sample.id for sample in self.samples]
        self.draws = torch.tensor([draw_of(protocol.seed, name) for name in names])
        self.sharing = len(batch)  # samples that the prefill is for
        self.waiting: list[tuple[list[Group], dict[Cell, Point]]] = []
        self.bytes = 0.0
        self.failed: list[tuple[Sequence[WorkItem], list[Point], str]] = []  # reasons as text: they keep no tensors

    def run(self, cells: dict[Point, Cell], meter) -> list[dict]:
        """The rows of what worked; `failed` says what did not."""
        rows, needs = [], {}
        for point, cell in cells.items():
            needs.setdefault((cell.pruner, cell.reads), {})[point] = cell
        for number, ((pruner, reads), wanted) in enumerate(needs.items()):
            meter.step((number + 0.5) / (len(needs) + 1))
            methods = [cell.method for cell in wanted.values() if not cell.everything]
            try:
                prefill = self._prefill(methods, pruner, reads)
            except Exception as error:
                self._fail(wanted, error)
                continue
            for part in self._parts(prefill, wanted):
                rows += self.flush() if part is None else self._fork(prefill, part)
            del prefill
        meter.step(len(needs) / (len(needs) + 1))
        return rows + self.flush()

    def _prefill(self, methods, pruner, reads):
        """The prompt's prefill, with or without what a leaking reference may read after it."""
        reach = self.whole()
        if not self.context.shape[1]:
            raise ValueError("the prompt is empty: there is nothing to go on from")
        if reads is None:
            return self.engine.prefill(self.context, methods, pruner, self.draws, shape=self.shape, reach=reach)
        following = self.rest
        if reads == "answer":
            following = torch.cat((following, self.right_answer()), 1)
        watched = following.shape[1] - (self.rest.shape[1] if reads == "answer" else 0)
        return foresee(self.engine, self.context, following, watched, methods, self.draws, reach)

    def right_answer(self) -> torch.Tensor:
        """The tokens of the first listed answer, one row; samples come one by one where it is asked for."""
        [sample] = self.samples
        if not sample.answers:
            raise ValueError("the sample has no answer to read")
        tokens = self.loaded.tokenizer(sample.answers[0], add_special_tokens=False)["input_ids"]
        return torch.tensor([tokens], device=self.context.device)

    def _fail(self, points, error: Exception) -> None:
        if isinstance(error, UserError) and not isinstance(error, Inexact):
            raise error
        self.failed.append((self.batch, list(points), explain(error)))

    def _parts(self, prefill, wanted: dict[Point, Cell]) -> Iterator[dict[Point, Cell] | None]:
        """The cells in parts that fit into memory beside what waits; None: decode what waits first."""
        limit, carried, part = 0.5 * self.engine.free_bytes(), prefill.carried_bytes, {}
        for point, cell in wanted.items():
            budget = self.shape.tokens if cell.budget is None else cell.budget
            kept = min(budget, self.shape.tokens)
            slots = kept + cell.room(budget - kept + budget * cell.stays, self.room, self.fed())
            need = carried + (prefill.nbytes - carried) * slots / self.shape.tokens
            if self.bytes + need > limit and (part or self.waiting):
                yield part
                yield None
                part = {}
            self.bytes += need
            part[point] = cell
        yield part

    def _fork(self, prefill, part: dict[Point, Cell]) -> list[dict]:
        if part:
            try:
                groups = self.engine.fork(prefill, list(part.values()), self.room, fed=self.fed())
            except Exception as error:
                self._fail(part, error)
            else:
                self.waiting.append((groups, {cell: point for point, cell in part.items()}))
        return []

    def measured(self, sample: Sample, row: dict, logprobs) -> dict:
        """A row with its task's measures of these likelihoods, or with the reason why there are none."""
        if not bool(torch.isfinite(logprobs).all()):
            return broken(row)
        return row | self.task.measured(sample, logprobs)

    def row(self, group, number, point, row) -> dict:
        """A row with everything but the answer: measured sizes, survival and the cost of the prefill."""
        prompt, cell, shape = self.batch[row].prompt, group.cells[number], self.shape
        result = base_row(self.task, self.batch[row], point, self.protocol, shape, None)
        sizes = group.measure(number, row)
        kept = sum(sizes.entries[layer] for layer in shape.evicted) / len(shape.evicted)
        result |= {"budget_entries": cell.budget, "kept_entries": kept, "kept_fraction": kept / shape.tokens}
        result |= {"kv_bytes": sizes.kv_bytes, "state_bytes": sizes.state_bytes, "carried_bytes": sizes.carried_bytes}
        spans = {name: span for name, span in prompt.spans.items() if span[1] <= shape.tokens}
        result["spans_kept"] = {name: group.survival(number, row, *span) for name, span in spans.items()}
        result["prefill_s"] = group.prefill.cell_seconds(cell.method) / self.sharing
        return result

    def flush(self) -> list[dict]:
        """Answers all waiting cells together and returns their rows."""
        waiting, self.waiting, self.bytes = self.waiting, [], 0.0
        groups = [group for some, _ in waiting for group in some]
        points = {cell: point for _, names in waiting for cell, point in names.items()}
        return self.answered(groups, points) if groups else []

    def answered(self, groups: Sequence[Group], points: dict[Cell, Point]) -> list[dict]:
        """The rows of these groups' cells, with their answers."""
        rows = [
            (sample, self.row(group, number, points[cell], row))
            for group in groups
            for number, cell in enumerate(group.cells)
            for row, sample in enumerate(self.samples)
        ]
        try:
            self.answer(groups, rows)
        except Exception as error:
            self._fail(points.values(), error)
            return []
        if self.one_decoding:
            self._add_sizes(groups, [row for _, row in rows])
        return [row for _, row in rows]

    def _add_sizes(self, groups: Sequence[Group], rows: Sequence[dict]) -> None:
        """Completes the rows of these groups by how large the caches were while their answers were decoded."""
        batch = range(len(self.samples))
        places = [(group, cell, sample) for group in groups for cell in range(len(group.cells)) for sample in batch]
        for (group, cell, sample), row in zip(places, rows, strict=True):
            sizes = None if row["error"] is not None else group.over_time(cell, sample)
            if sizes is not None:
                row.update(zip(OVER_TIME, vars(sizes).values(), strict=True))


class OneContext(Attempt):
    """Questions on one context: one prefill and one compressed cache a cell, a copy of it for every question."""

    def __init__(self, kind, engine, loaded, task, batch, protocol, shape):
        self.engine, self.batch, self.shape = engine, batch, shape
        self.ask = lambda items: kind(engine, loaded, task, items, protocol, shape)
        asked = [self.ask(items) for items in alike(batch, len(batch))]
        self.context, self.draws = asked[0].context[:1], asked[0].draws[:1]
        self.room, self.longest = (max(one) for one in zip(*((one.room, one.whole()) for one in asked), strict=True))
        self.most_fed = max(one.fed() for one in asked)
        self.waiting, self.bytes, self.failed = [], 0.0, []

    def whole(self):
        return self.longest

    def fed(self):
        return self.most_fed

    def answered(self, groups, points):
        """As many questions at once as copies of all caches fit into half of the free memory."""
        copy = sum(entries.nbytes for group in groups for entries in group.layers)
        rows, most = [], max(1, int(0.5 * self.engine.free_bytes() / copy))
        for items in alike(self.batch, most):
            asked = self.ask(items)
            asked.sharing = len(self.batch)
            try:
                copies = [group.repeated(len(items)) for group in groups]
            except Exception as error:
                asked._fail(points.values(), error)
            else:
                rows += asked.answered(copies, points)
            self.failed += asked.failed
        return rows


def alike(batch: Sequence[WorkItem], most: int) -> list[list[WorkItem]]:
    """The samples in parts, of at most so many, that can be fed and answered together: none is padded."""
    parts: dict[tuple, list[WorkItem]] = {}
    for item in batch:
        parts.setdefault((len(item.prompt.ids), item.prompt.ends, item.sample.stop), []).append(item)
    return [part[first : first + most] for part in parts.values() for first in range(0, len(part), most)]


def draw_of(seed: int, sample: str) -> int:
    """A 62-bit number for the methods that draw: a function of (seed, sample)."""
    state = np.random.SeedSequence([seed, *sample.encode()]).generate_state(1, np.uint64)[0]
    return int(state >> np.uint64(2))
