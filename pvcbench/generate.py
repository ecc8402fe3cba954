"""Tasks of kind `generate`: one prefill per distinct need, all cells decoded together, one row per sample and cell."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pvcbench.cells import Point
from pvcbench.engine.engine import Engine
from pvcbench.engine.evict import Cell, Group
from pvcbench.errors import OutOfReach, UserError
from pvcbench.models import LoadedModel
from pvcbench.policy import Shape
from pvcbench.prompts import Prompt
from pvcbench.tasks.base import Sample, Task


@dataclass(frozen=True)
class Protocol:
    """How prompts meet the cache; every row says it, so that no two curves mix protocols by accident."""

    query_aware: bool
    refeed_last: bool
    decode: str
    seed: int

    def compressed(self, prompt: Prompt) -> int:
        """Tokens that are prefilled and compressed; the rest is fed through the compressed cache."""
        if self.query_aware:
            return len(prompt.ids) - int(self.refeed_last)
        return prompt.context_tokens

    def record(self, fed: int) -> dict:
        """What a row says of its protocol."""
        record = {"query_aware": self.query_aware, "decode": self.decode, "refeed_last": self.refeed_last}
        return record | {"first_token_uncompressed": fed == 0}


def run_batch(
    engine: Engine,
    loaded: LoadedModel,
    task: Task,
    batch: Sequence[tuple[Sample, Prompt, tuple[Point, ...]]],
    protocol: Protocol,
    meter,
) -> list[dict]:
    """The rows of some samples with equally long prompts, for all cells they lack."""
    samples, prompts = [item[0] for item in batch], [item[1] for item in batch]
    ids = torch.tensor([prompt.ids for prompt in prompts], device=engine.device)
    compressed = protocol.compressed(prompts[0])
    shape = engine.shape(compressed)
    cells, rows = {}, []
    for point in batch[0][2]:
        try:
            cells[point] = point.cell(shape, protocol.decode == "hold")
        except OutOfReach as error:
            rows += [base_row(task, item, point, protocol, shape, str(error)) for item in batch]
    feed = ids[:, compressed:] if compressed < ids.shape[1] else None
    wave = Wave(engine, loaded, task, batch, protocol, shape, feed)
    draws = torch.tensor([draw_of(protocol.seed, sample.id) for sample in samples])
    sources = list(needs(cells))
    for number, (pruner, wanted) in enumerate(sources):
        meter.step((number + 0.5) / (len(sources) + 1))
        try:
            methods = [cell.method for cell in wanted.values() if not cell.everything]
            prefill = engine.prefill(ids[:, :compressed], methods, pruner, draws)
        except Exception as error:
            rows += [base_row(task, item, point, protocol, shape, explain(error)) for point in wanted for item in batch]
            continue
        rows += wave.add(prefill, wanted)
        del prefill
    meter.step(len(sources) / (len(sources) + 1))
    return rows + wave.flush()


def needs(cells: dict[Point, Cell]) -> Iterator[tuple]:
    """The distinct prefills among some cells, as (pruner or None, the cells that share it)."""
    shared: dict = {}
    for point, cell in cells.items():
        shared.setdefault(cell.pruner, {})[point] = cell
    yield from shared.items()


class Wave:
    """Cells waiting to decode together; decodes what it holds when more would not fit into memory."""

    def __init__(self, engine, loaded, task, batch, protocol, shape, feed):
        self.engine, self.loaded, self.task, self.batch, self.protocol = engine, loaded, task, batch, protocol
        self.shape, self.feed = shape, feed
        fed = 0 if feed is None else feed.shape[1]
        self.room = fed + max(sample.max_new_tokens for sample, *_ in batch)
        self.groups: list[Group] = []
        self.rows: dict[Cell, list[dict]] = {}
        self.bytes = 0

    def add(self, prefill, wanted: dict[Point, Cell]) -> list[dict]:
        """Forks the cells of a prefill; returns the rows of what had to be decoded first."""
        finished, part = [], {}
        limit = 0.5 * self.engine.free_bytes()
        full = self.engine.prompt_bytes(prefill)
        for point, cell in wanted.items():
            share = 1.0 if cell.budget is None else min(1.0, cell.budget / self.shape.tokens)
            need = full * (share + self.room / self.shape.tokens)
            if self.bytes + need > limit and (part or self.groups):
                finished += self._fork(prefill, part) + self.flush()
                part = {}
            self.bytes += need
            part[point] = cell
        return finished + self._fork(prefill, part)

    def _fork(self, prefill, part: dict[Point, Cell]) -> list[dict]:
        if not part:
            return []
        by_cell = {cell: point for point, cell in part.items()}
        try:
            groups = self.engine.fork(prefill, list(by_cell), self.room)
        except Exception as error:
            return [
                base_row(self.task, item, point, self.protocol, self.shape, explain(error))
                for point in part
                for item in self.batch
            ]
        for group in groups:
            for number, cell in enumerate(group.cells):
                point = by_cell[cell]
                self.rows[cell] = [self._row(group, number, point, row) for row in range(len(self.batch))]
        self.groups += groups
        return []

    def _row(self, group, number, point, row) -> dict:
        """A row with everything but the answer: measured sizes, survival and the cost of the prefill."""
        prompt, cell, shape = self.batch[row][1], group.cells[number], self.shape
        result = base_row(self.task, self.batch[row], point, self.protocol, shape, None)
        sizes = group.measure(number, row)
        kept = sum(sizes.entries[layer] for layer in shape.evicted) / len(shape.evicted)
        result |= {"budget_entries": cell.budget, "kept_entries": kept, "kept_fraction": kept / shape.tokens}
        result |= {"kv_bytes": sizes.kv_bytes, "state_bytes": sizes.state_bytes}
        spans = {name: span for name, span in prompt.spans.items() if span[1] <= shape.tokens}
        result["spans_kept"] = {name: group.survival(number, row, *span) for name, span in spans.items()}
        result["prefill_s"] = group.prefill.cell_seconds(cell.method) / len(self.batch)
        return result

    def flush(self) -> list[dict]:
        """Decodes all waiting cells together and returns their finished rows."""
        groups, rows, self.groups, self.rows, self.bytes = self.groups, self.rows, [], {}, 0
        if not groups:
            return []
        samples = [sample for sample, *_ in self.batch]
        prompter = self.task.prompter
        stops = samples[0].stop
        stopped = (lambda tokens: any(stop in prompter.decode(tokens) for stop in stops)) if stops else None
        order = [cell for group in groups for cell in group.cells]
        try:
            longest = max(sample.max_new_tokens for sample in samples)
            answers, seconds = self.engine.greedy(
                groups, feed=self.feed, new_tokens=longest, ends=self.loaded.ends, stopped=stopped
            )
        except Exception as error:
            return [row | EMPTY | {"error": explain(error)} for cell in order for row in rows[cell]]
        finished = []
        for cell, generated in zip(order, answers, strict=True):
            for sample, row, tokens in zip(samples, rows[cell], generated, strict=True):
                output = cut(prompter.decode(tokens[: sample.max_new_tokens]), sample.stop)
                metrics = self.task.score(sample, output)
                row |= {"score": next(iter(metrics.values())), "metrics": metrics, "output": output}
                row["decode_s"] = seconds if len(order) == 1 and len(samples) == 1 else None
                finished.append(row)
        return finished


EMPTY = {"score": None, "metrics": {}, "output": None, "decode_s": None, "peak_bytes": None}


def label(point: Point) -> dict:
    return {"method": point.name, "budget": point.label, "reference": point.method.reference}


def base_row(task: Task, item: tuple, point: Point, protocol: Protocol, shape: Shape, error: str | None) -> dict:
    """The columns known before a cell runs; the others null."""
    sample, prompt, _ = item
    row = {
        "task": task.name,
        "sample": sample.id,
        "sample_info": dict(sample.info),
        "cluster": sample.cluster or sample.id,
    }
    row |= {"prompt_sha256": prompt.sha256, "protocol": protocol.record(len(prompt.ids) - shape.tokens)} | label(point)
    row |= {
        "budget_entries": None,
        "prompt_tokens": len(prompt.ids),
        "question_tokens": len(prompt.ids) - prompt.context_tokens,
    }
    row |= {"kept_entries": None, "kept_fraction": None, "evicted_layers": list(shape.evicted), "kv_bytes": None}
    row |= {
        "state_bytes": None,
        "spans_kept": {},
        **EMPTY,
        "answers": list(sample.answers),
        "prefill_s": None,
        "error": error,
    }
    return row


def explain(error: Exception) -> str:
    """One line for a row; a user's error is no row but ends the run."""
    if isinstance(error, UserError):
        raise error
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


def cut(text: str, stops: Sequence[str]) -> str:
    """The text up to the first stop string."""
    ends = [text.index(stop) for stop in stops if stop in text]
    return text[: min(ends)] if ends else text


def draw_of(seed: int, sample: str) -> int:
    """A 62-bit number for the methods that draw: a function of (seed, sample)."""
    state = np.random.SeedSequence([seed, *sample.encode()]).generate_state(1, np.uint64)[0]
    return int(state >> np.uint64(2))
