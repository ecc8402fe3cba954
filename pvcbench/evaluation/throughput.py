"""Tasks of kind `measure`: every cell runs alone, in turn with the others, on the same path as the full cache.

A pass is prefill with only this cell's method watching, the first token from its logits, a fork that frees the prompt
layer by layer, and greedy decoding without stop tokens. After a warm-up all cells run once in each repeat, so that
whatever drifts hits all of them alike.
"""

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median

import torch
from jaxtyping import Int
from torch import Tensor

from pvcbench.engine.decode import Decoder
from pvcbench.engine.engine import Engine, require_finite
from pvcbench.engine.evict import Cell
from pvcbench.engine.observer import clock
from pvcbench.engine.static_decode import StaticDecoder, fastest
from pvcbench.errors import Inexact, OutOfReach, UserError
from pvcbench.evaluation.cells import Point
from pvcbench.evaluation.item import WorkItem
from pvcbench.evaluation.peak_memory import PeakMemory, Search, largest_batch
from pvcbench.evaluation.row import Protocol, base_row, explain
from pvcbench.evaluation.shared_prefill import draw_of
from pvcbench.models.loaded import LoadedModel
from pvcbench.tasks.throughput import GIB, LARGEST, Throughput

FEW = 9  # tokens that a warm-up and a trial of a batch generate, in caches with room for all


def decode(
    decoder: Decoder | StaticDecoder, first: Int[Tensor, " rows"], new_tokens: int
) -> Int[Tensor, "rows tokens"]:
    """Goes on greedily after the first token, `new_tokens - 1` steps; nothing waits for the device before the last.

    Raises NotFinite where a step's largest logit was NaN, as it is where any is, or infinite.
    """
    tokens, largest = [first], []
    for _ in range(new_tokens - 1):
        best = decoder.step(tokens[-1][:, None]).max(-1)
        tokens.append(best.indices)
        largest.append(best.values)
    if largest:
        require_finite(torch.stack(largest))
    return torch.stack(tokens, 1)


@dataclass(frozen=True)
class Pass:
    """One pass of a cell: seconds, peaks in bytes, and sizes of its cache over all rows of the batch."""

    ttft_s: float
    compress_s: float
    decode_s: float
    capture_s: float  # getting steps ready (on a GPU: capturing one); in none of the speeds
    prefill_peak_bytes: int | None  # compression included
    decode_peak_bytes: int | None
    kept_entries: float  # after the prefill, mean over rows, evictable layers and KV heads
    kv_bytes: int
    kv_bytes_end: int
    state_bytes: int
    carried_bytes: int  # the part of `kv_bytes` that recurrent layers carry


def speeds(batch: int, prompt: int, new: int, ttft_s: float, compress_s: float, decode_s: float) -> dict[str, float]:
    """Tokens per second: decoded ones only, all generated ones, and prompts counted too as the paper's script does."""
    seconds = ttft_s + compress_s + decode_s
    return {
        "decode_tokens_per_s": batch * (new - 1) / decode_s,
        "generated_per_s": batch * new / seconds,
        "paper_tokens_per_s": batch * (prompt + new) / seconds,
    }


class Turns:
    """The cells of one sample, measured in turn."""

    def __init__(self, engine: Engine, task: Throughput, item: WorkItem, protocol: Protocol):
        self.engine, self.task, self.item, self.protocol = engine, task, item, protocol
        self.sample = item.sample
        self.shape, self.new = engine.shape(len(item.prompt.ids)), self.sample.max_new_tokens
        self.memory = PeakMemory(engine.device)
        self.cells: dict[Point, Cell] = {}
        self.failed: dict[Point, OutOfReach | str] = {}
        self.searches: dict[Point, Search] = {}
        self.steps: dict[Point, str] = {}  # how each cell's steps run
        for point in item.points:
            try:
                self.cells[point] = protocol.cell(point, self.shape)
            except OutOfReach as error:
                self.failed[point] = error

    def run(self, meter) -> list[dict]:
        """The rows of all cells; one that fails becomes a row that says why, and sinks no other."""
        started = datetime.now(UTC).isoformat(timespec="milliseconds")
        passes: dict[Point, list[Pass]] = {point: [] for point in self.cells}
        batches = {point: batch for point in self.cells if (batch := self._attempt(point, self._batch)) is not None}
        for turn in range(self.task.repeats + 1):
            for number, point in enumerate(batches):
                meter.step((turn + number / len(batches)) / (self.task.repeats + 1))
                new = self.new if turn else min(FEW, self.new)
                done = None if point in self.failed else self._attempt(point, self.measure, batches[point], new)
                passes[point] += [done] if turn and done is not None else []
        return [self._row(point, batches, passes, started) for point in self.item.points]

    def _attempt(self, point: Point, work, *arguments):
        """What the work returns for a point; None where it fails, with the reason noted."""
        try:
            with torch.inference_mode():
                return work(point, *arguments)
        except Exception as error:
            if isinstance(error, UserError) and not isinstance(error, Inexact):
                raise
            self.failed[point] = explain(error)
        self._clear()
        return None

    def _clear(self) -> None:
        gc.collect()
        if self.engine.device.type == "cuda":
            torch.cuda.empty_cache()

    def _batch(self, point: Point) -> int:
        """Prompts that run together: as many as asked, or as many as fit."""
        if self.sample.info["batch"] != LARGEST:
            return self.sample.info["batch"]
        limit = self.memory.limit() if self.task.memory is None else self.task.memory
        if self.memory.peak() is None or limit is None:
            raise UserError("this system does not tell a process its peak memory: leave `largest` out of task.batches")

        def peak(batch: int) -> int | None:
            self._clear()
            try:
                done = self.measure(point, batch, min(FEW, self.new))
            except Exception as error:
                if not out_of_memory(error):
                    raise
                return None
            return max(done.prefill_peak_bytes, done.decode_peak_bytes)

        search = self.searches[point] = largest_batch(peak, limit)
        self._clear()
        if search.fits < 1:
            raise MemoryError(f"not even one prompt fits into {limit / GIB:.3g} GiB")
        return search.fits

    def measure(self, point: Point, batch: int, new: int) -> Pass:
        """One pass of a cell alone, generating `new` tokens in a cache with room for all that the sample asks for."""
        cell, engine, device = self.cells[point], self.engine, self.engine.device
        ids = torch.tensor(self.task.rows(self.sample, batch), device=device)
        draws = torch.tensor([draw_of(self.protocol.seed, f"{self.sample.id} {row}") for row in range(batch)])
        watching = [] if cell.everything else [cell.method]
        self.memory.reset()
        times = [clock(ids)]
        prefill = engine.prefill(ids, watching, cell.pruner, draws)
        first = prefill.logits.argmax(-1)
        times.append(clock(ids))
        fed = 1 if self.protocol.eviction else None  # steps of one shape, which have no interval, count their slots
        [group] = engine.fork(prefill, [cell], self.new - 1, consume=True, fed=fed)
        times.append(clock(ids))
        before, sizes = self.memory.peak(), [group.measure(0, row) for row in range(batch)]
        self.memory.reset()
        times.append(clock(ids))
        decoder = fastest(engine.call, [group], engine.backend)
        self.steps[point] = "one shape" if isinstance(decoder, StaticDecoder) else "ordinary"
        times.append(clock(ids))
        decode(decoder, first, new)
        times.append(clock(ids))
        require_finite(prefill.logits)
        kept = [one.entries[layer] for one in sizes for layer in self.shape.evicted]
        return Pass(
            ttft_s=times[1] - times[0],
            compress_s=times[2] - times[1],
            decode_s=times[5] - times[4],
            capture_s=times[4] - times[3],
            prefill_peak_bytes=before,
            decode_peak_bytes=self.memory.peak(),
            kept_entries=sum(kept) / len(kept),
            kv_bytes=sum(one.kv_bytes for one in sizes),
            kv_bytes_end=sum(group.measure(0, row).kv_bytes for row in range(batch)),
            state_bytes=sum(one.state_bytes for one in sizes),
            carried_bytes=sum(one.carried_bytes for one in sizes),
        )

    def _row(self, point: Point, batches: dict, passes: dict, started: str) -> dict:
        """A row of medians, with every repeat's own numbers in `repeats`; `session` says which cells took turns."""
        row = base_row(self.task, self.item, point, self.protocol, self.shape, self.failed.get(point))
        search = self.searches.get(point)
        tried = None if search is None else {"limit": search.limit, "tried": search.tried, "settled": search.settled}
        row |= {"question_tokens": 0, "repeats": {}, "session": started, "search": tried}
        if point in self.failed:
            return row
        batch, done = batches[point], passes[point]
        timed = [vars(one) | speeds(batch, self.shape.tokens, self.new, *list(vars(one).values())[:3]) for one in done]
        lists = {key: [one[key] for one in timed] for key in timed[0]}
        middle = {key: None if None in values else median(values) for key, values in lists.items()}
        peaks = middle["prefill_peak_bytes"], middle["decode_peak_bytes"]
        names = ("decode_tokens_per_s", "generated_per_s", "paper_tokens_per_s", "ttft_s", "compress_s", "decode_s")
        names += ("capture_s", "prefill_peak_bytes", "decode_peak_bytes", "kv_bytes", "kv_bytes_end")
        metrics = {name: middle[name] for name in names} | {"batch": batch, "weight_bytes": weight_bytes(self.engine)}
        metrics |= {"steps": self.steps[point]} | ({} if search is None else {"largest_batch": batch})
        row |= {"score": middle["decode_tokens_per_s"], "metrics": metrics, "repeats": lists}
        row |= {"kept_entries": middle["kept_entries"], "kept_fraction": middle["kept_entries"] / self.shape.tokens}
        row |= {"budget_entries": self.cells[point].budget, "kv_bytes": done[0].kv_bytes}
        row |= {"carried_bytes": done[0].carried_bytes}
        row |= {"state_bytes": done[0].state_bytes, "prefill_s": middle["ttft_s"], "decode_s": middle["decode_s"]}
        return row | {"peak_bytes": None if None in peaks else max(peaks)}


def run_measurements(
    engine: Engine,
    loaded: LoadedModel,
    task: Throughput,
    batch: Sequence[WorkItem],
    protocol: Protocol,
    meter,
) -> list[dict]:
    """The rows of some samples, one after the other."""
    gc.collect()
    gc.freeze()  # what lives on is not looked through again in every pass
    try:
        return [row for item in batch for row in Turns(engine, task, item, protocol).run(meter)]
    finally:
        gc.unfreeze()


def weight_bytes(engine: Engine) -> int:
    """Bytes of the model's parameters, those that layers share once."""
    return sum(tensor.nbytes for tensor in engine.model.parameters())


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, on a GPU or a CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
