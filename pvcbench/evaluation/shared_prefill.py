"""Runs some cells of a batch once: each distinct prefill once, forks of it, a row per sample and cell.

What happens on the forked caches is the kind's: `generation.py` decodes, `likelihood.py` scores given tokens.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from pvcbench.engine.engine import Engine
from pvcbench.engine.evict import Cell, Group
from pvcbench.engine.lookahead import foresee
from pvcbench.errors import Inexact, OutOfReach, UserError
from pvcbench.evaluation.cells import Point
from pvcbench.evaluation.item import WorkItem
from pvcbench.evaluation.row import Protocol, Row, base_row, broken, explain
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
    """The rows of some samples with equally long prompts, for all cells they lack.

    Cells and samples that fail together are tried again one by one, so that one that cannot run sinks no other.
    """
    tokens, prompt = kind.compressed(protocol, batch[0].prompt), batch[0].prompt
    shape = engine.shape(tokens, min(prompt.frame_tokens, tokens), max(0, tokens - prompt.context_tokens))
    cells, rows = {}, []
    for point in batch[0].points:
        try:
            cells[point] = point.cell(shape, protocol.decode == "hold")
        except OutOfReach as error:
            rows += [base_row(task, item, point, protocol, shape, error) for item in batch]
    attempt = kind(engine, loaded, task, batch, protocol, shape)
    rows += attempt.run(cells, meter)
    for points, error in attempt.failed:
        if len(points) == len(batch) == 1:
            rows.append(base_row(task, batch[0], points[0], protocol, shape, error))
            continue
        for item in batch:
            for point in points:
                rows += run_batch(kind, engine, loaded, task, [item.of(point)], protocol, meter)
    return rows


class Attempt:
    """Prefill, fork, and answer in waves that fit into memory; a kind says how it answers."""

    @staticmethod
    def compressed(protocol: Protocol, prompt: Prompt) -> int:
        """Tokens that are prefilled and compressed; the rest is fed through the compressed cache."""
        raise TypeError("this kind does not say what it compresses")

    def room_needed(self) -> int:
        """Tokens that the caches take beside the compressed ones."""
        raise TypeError(f"{type(self).__name__} does not say how much room it needs")

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
        self.draws = torch.tensor([draw_of(protocol.seed, sample.id) for sample in self.samples])
        self.waiting: list[tuple[list[Group], dict[Cell, Point]]] = []
        self.bytes = 0.0
        self.failed: list[tuple[list[Point], str]] = []  # reasons as text: an exception would keep its frames' tensors

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
            return self.engine.prefill(self.context, methods, pruner, self.draws, self.shape, reach=reach)
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
        self.failed.append((list(points), explain(error)))

    def _parts(self, prefill, wanted: dict[Point, Cell]) -> Iterator[dict[Point, Cell] | None]:
        """The cells in parts that fit into memory beside what waits; None: decode what waits first."""
        limit, carried, part = 0.5 * self.engine.free_bytes(), prefill.carried_bytes, {}
        for point, cell in wanted.items():
            share = 1.0 if cell.budget is None else min(1.0, cell.budget / self.shape.tokens)
            need = carried + (prefill.nbytes - carried) * (share + self.room / self.shape.tokens)
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
                groups = self.engine.fork(prefill, list(part.values()), self.room)
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
        result["prefill_s"] = group.prefill.cell_seconds(cell.method) / len(self.batch)
        return result

    def flush(self) -> list[dict]:
        """Answers all waiting cells together and returns their rows."""
        waiting, self.waiting, self.bytes = self.waiting, [], 0.0
        groups = [group for some, _ in waiting for group in some]
        points = {cell: point for _, names in waiting for cell, point in names.items()}
        rows = [
            (sample, self.row(group, number, points[cell], row))
            for group in groups
            for number, cell in enumerate(group.cells)
            for row, sample in enumerate(self.samples)
        ]
        try:
            if rows:
                self.answer(groups, rows)
        except Exception as error:
            self._fail(points.values(), error)
            return []
        return [row for _, row in rows]


def draw_of(seed: int, sample: str) -> int:
    """A 62-bit number for the methods that draw: a function of (seed, sample)."""
    state = np.random.SeedSequence([seed, *sample.encode()]).generate_state(1, np.uint64)[0]
    return int(state >> np.uint64(2))
