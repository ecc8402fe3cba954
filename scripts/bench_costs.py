"""The points on which the cost model of docs/results/scale.md is fitted and checked: what parts of an evaluation cost.

    python scripts/bench_costs.py --out results/bench/costs.json

Prefills of every kind and length, decoding steps by cache and batch, forks, and peak memory, on the embedded model and
on a random one of another shape; beside them the machine's rates of copying and of matrix products. Each point says
beforehand whether the model may be fitted on it. All points of a round run in turn, so that the machine's moods fall on
all of them; a point is the median of its rounds after a warm-up, with its smallest and largest. The last line is one
JSON document.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from methods.h2o import H2O
from methods.pvc import PvC
from methods.random import Random
from pvcbench.costs.bench_document import finish
from pvcbench.costs.fitted import STEPS
from pvcbench.costs.model import Architecture
from pvcbench.engine.decode import Decoder
from pvcbench.engine.engine import Engine
from pvcbench.engine.evict import Cell
from pvcbench.engine.observer import clock
from pvcbench.policy import Method

NAMES = "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads vocab_size".split()
SHAPES = {  # of random models: another width, depth and head size than the embedded one's; two toys for quick runs
    "wide": dict(zip(NAMES, (1024, 2816, 8, 8, 2, 8192), strict=True)),
    "toy": dict(zip(NAMES, (64, 128, 6, 4, 2, 300), strict=True)),
    "wide_toy": dict(zip(NAMES, (128, 384, 5, 4, 2, 300), strict=True)),
}


@dataclass(frozen=True)
class Window(Method):
    """Observes the last rows of the prompt, as SnapKV and its kin do."""

    rows: int = 64

    def row_weights(self, shape, layer):
        return torch.ones(min(self.rows, shape.tokens), dtype=torch.float64)

    def scores(self, seen):
        return seen.grouped_mass()


@dataclass(frozen=True)
class Point:
    """One thing to measure. `method`: plain, observed (all rows), window, or pvc at `budget` of the cache."""

    role: str  # fit | check
    kind: str  # prefill | step | fork | memory
    model: str  # smollm2, or a name in SHAPES
    tokens: int  # of the prompt; of each cell's cache where it steps
    method: str = "plain"
    budget: float | None = None
    rows: int = 1  # caches that step together


def plan(quick: bool, unit: int | None = None) -> list[Point]:
    """The points, fitted and checked, of 1 to 16 units of tokens; a quick run has the same kinds at toy sizes."""
    one, other, low, high = ("toy", "wide_toy", 0.85, 0.9) if quick else ("smollm2", "wide", 0.5, 0.8)
    unit = unit or (64 if quick else 256)

    def prefills(role, model, lengths, methods):
        for length in lengths:
            for method, budget in methods:
                yield Point(role, "prefill", model, length * unit, method, budget)

    plain, observed, window = ("plain", None), ("observed", None), ("window", None)
    points = [
        *prefills("fit", one, (1, 4, 8), (plain, observed)),
        *prefills("fit", one, (4,), (window,)),
        *prefills("fit", other, (2, 8), (plain, observed)),
        *prefills("check", one, (2, 6), (plain, observed, window, ("pvc", low), ("pvc", high))),
        *prefills("check", one, (16,), (plain, observed, ("pvc", low))),
        *prefills("check", other, (4,), (plain, observed, ("pvc", high))),
    ]
    for role, model, cells in (
        ("fit", one, ((1, 1), (8, 1), (1, 8), (8, 8))),
        ("fit", other, ((1, 1), (8, 8))),
        ("check", one, ((4, 2), (2, 4), (8, 16), (15, 1))),
        ("check", other, ((4, 4), (8, 1))),
    ):
        points += [Point(role, "step", model, length * unit, rows=rows) for length, rows in cells]
    for role, model, forks in (
        ("fit", one, ((8, 0.1), (8, 0.9), (2, 0.5))),
        ("check", one, ((8, 0.5), (4, 0.25))),
        ("check", other, ((8, 0.5),)),
    ):
        points += [Point(role, "fork", model, length * unit, "random", budget) for length, budget in forks]
    memory = ((12, (plain, observed)),) if quick else ((4, (plain, observed)), (12, (plain, observed, ("pvc", low))))
    for length, methods in memory:
        points += [Point("check", "memory", one, length * unit, *each) for each in methods]
    return points


class Bench:
    """The two models and the prompts, caches and runs of the points."""

    def __init__(self, device: str):
        self.device = device
        self.dtype = torch.bfloat16 if device == "cuda" else torch.float32

    @cache  # noqa: B019  one bench per process
    def engine(self, model: str) -> Engine:
        """The embedded model, or random weights of another shape, in an engine."""
        if model == "smollm2":
            from pvcbench.models.embedded import ensure

            built = AutoModelForCausalLM.from_pretrained(ensure(), dtype=self.dtype)
        else:
            torch.manual_seed(0)
            built = AutoModelForCausalLM.from_config(
                LlamaConfig(**SHAPES[model], max_position_embeddings=16384), dtype=self.dtype
            )
        return Engine(built.eval().to(self.device))

    @cache  # noqa: B019
    def prefilled(self, model: str, tokens: int):
        """A plain prefill, kept for the forks and steps, with random eviction's scores."""
        return self.engine(model).prefill(self.ids(model, tokens), [Random()])

    def ids(self, model, tokens):
        """The same random tokens every time."""
        engine, generator = self.engine(model), torch.Generator().manual_seed(tokens)
        return torch.randint(5, engine.config.vocab_size, (1, tokens), generator=generator).to(engine.device)

    def prefill(self, point: Point):
        """One prefill of the point's kind."""
        engine, ids = self.engine(point.model), self.ids(point.model, point.tokens)
        if point.method == "pvc":
            return engine.prefill(ids, pruner=pruner_of(engine, point))
        return engine.prefill(ids, {"plain": [], "observed": [H2O()], "window": [Window()]}[point.method])

    def prepare(self, point: Point):
        """What a measurement of the point repeats, and how often its work is in one."""
        engine = self.engine(point.model)
        if point.kind == "prefill":
            return lambda: self.prefill(point).logits, 1
        prefill = self.prefilled(point.model, point.tokens)
        budget = point.tokens if point.budget is None else int(point.budget * point.tokens)
        cells = [Cell(str(row), Random(), budget, everything=point.budget is None) for row in range(point.rows)]
        if point.kind == "fork":
            return lambda: engine.fork(prefill, cells, 16)[0].layers[-1].keys, 1
        decoder = Decoder(engine.call, engine.fork(prefill, cells, STEPS), engine.backend)
        token = torch.zeros(point.rows, 1, dtype=torch.int64, device=engine.device)

        def steps():
            for _ in range(STEPS):
                logits = decoder.step(token)
            return logits

        return steps, STEPS

    def measure(self, point: Point) -> float:
        """Seconds of the point's work, once."""
        with torch.inference_mode():
            run, times = self.prepare(point)
            marker = self.engine(point.model).model.lm_head.weight
            started = clock(marker)
            run()
            return (clock(marker) - started) / times


def pruner_of(engine, point):
    """PvC's ratios at the point's budget, by its solver."""
    return PvC().resolve(int(point.budget * point.tokens), engine.shape(point.tokens))


def ratios_of(engine, point):
    """What the cost model needs to know of a pruning prefill: the ratios that its solver found."""
    if point.method != "pvc":
        return {}
    pruner = pruner_of(engine, point)
    return {"ratios": {name: getattr(pruner, name) for name in ("recent_ratio", "prefill_decay_ratio")}}


def timed(bench: Bench, points: list[Point], rounds: int) -> dict[Point, list[float]]:
    """Seconds of each point in each round; the warm-up round before them is not among them."""
    found = {point: [] for point in points}
    for number in range(rounds + 1):
        for point in points:
            spent = bench.measure(point)
            if number:
                found[point].append(spent)
        print(f"round {number} of {rounds} done", file=sys.stderr)
    return found


def peak(bench: Bench, point: Point) -> tuple[int, int]:
    """Bytes in use before one prefill and at its peak, of this process or its device."""
    engine = bench.engine(point.model)
    bench.ids(point.model, point.tokens)
    if bench.device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        bench.prefill(point)
        return before, torch.cuda.max_memory_allocated()
    engine.prefill(bench.ids(point.model, 32))  # code and kernels are loaded, weights resident
    Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak of loading the model
    before = status("VmRSS")
    bench.prefill(point)
    return before, status("VmHWM")


def status(name):
    """A line of this process' status, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def peak_apart(point: Point, options) -> int:
    """Bytes that one prefill adds at its peak, in a process of its own."""
    command = [sys.executable, __file__, "--device", options.device, "--point", json.dumps(asdict(point))]
    # every large block mapped on its own and given back at once: what is resident is what is in use
    exact = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}
    run = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **exact})
    before, most = map(int, run.stdout.split()[-2:])
    return most - before


def rates(device: str, rounds: int, quick: bool) -> dict[str, list[float]]:
    """Bytes a second of copying (read and written) and operations a second of a matrix product, in each round."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    size, width = (2**20, 256) if quick else (2**27 if device == "cuda" else 2**25, 2048)
    source, square = torch.zeros(size, dtype=dtype, device=device), torch.ones(width, width, dtype=dtype, device=device)
    target, product, found = torch.empty_like(source), torch.empty_like(square), {"copy": [], "matrix_product": []}
    for number in range(rounds + 1):
        for name, run, amount in (
            ("copy", lambda: target.copy_(source), 2 * source.nbytes),
            ("matrix_product", lambda: torch.mm(square, square, out=product), 2 * width**3),
        ):
            started = clock(source)
            run()
            if number:
                found[name].append(amount / (clock(source) - started))
    return found


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def main():
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="toy sizes, a random model only: for tests")
    parser.add_argument("--unit", type=int, default=None, help="tokens; prompts have 1 to 16 times as many")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--point", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    bench = Bench(options.device)
    if options.point:
        print(*peak(bench, Point(**json.loads(options.point))))
        return
    points, rounds = plan(options.quick, options.unit), options.rounds
    ratios = {point: ratios_of(bench.engine(point.model), point) for point in points}  # a budget out of reach fails now
    spent = timed(bench, [point for point in points if point.kind != "memory"], rounds)
    machine = {name: spread(values) for name, values in rates(options.device, rounds, options.quick).items()}
    rows = []
    for point in points:
        value = spread(spent[point]) if point in spent else {"bytes": peak_apart(point, options)}
        rows.append(asdict(point) | ratios[point] | value)
        print(rows[-1], file=sys.stderr)
    shapes = {model: asdict(Architecture.of(bench.engine(model).config)) for model in {point.model for point in points}}
    element = bench.dtype.itemsize
    result = {"device": options.device, "threads": torch.get_num_threads(), "element_bytes": element, "rounds": rounds}
    finish(result | {"shapes": dict(sorted(shapes.items())), "rates": machine, "points": rows}, options.out)


if __name__ == "__main__":
    main()
