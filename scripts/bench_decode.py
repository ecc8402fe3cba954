"""What a decoding step costs against its floor: the weights and the cache read once at the machine's copy bandwidth.

    python scripts/bench_decode.py --tokens 4096 --batches 1 4

Every cache decodes alone, all in turn within each repeat; a step's time is the median over steps and repeats. `floor_s`
is (weight bytes + cache bytes) / measured copy bandwidth. `drift` is the mean of the last quarter of steps over that of
the first: 1 where a step under hold costs the same for ever. `static` steps have one shape (`engine/static.py`); on a
GPU they are replayed as CUDA graphs. The last line is one JSON document.
"""

import argparse
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from methods.full import Full
from methods.h2o import H2O
from methods.streaming_llm import StreamingLLM
from pvcbench.config import processors
from pvcbench.costs import bench_document
from pvcbench.engine.decode import Decoder
from pvcbench.engine.engine import Engine
from pvcbench.engine.evict import Cell
from pvcbench.engine.observer import clock
from pvcbench.engine.static_decode import StaticDecoder
from pvcbench.models import embedded, random_weights


def cells_of(engine, tokens, budget):
    """The caches to compare, by name: the full one, and smaller ones that grow or hold."""
    shape = engine.shape(tokens)
    found = {"full": Cell("full", Full(), None, everything=True)}
    for name, method in (("h2o", H2O()), ("streaming_llm", StreamingLLM())):
        for hold in (False, True):
            label = f"{name} {'hold' if hold else 'grow'}"
            found[label] = Cell(label, method.resolve(budget, shape), budget, hold)
    return found


def copy_bandwidth(device, mib=256, repeats=5):
    """Bytes a second that a copy of a large tensor reads and writes, the fastest of some repeats."""
    source = torch.ones(mib * 2**18, dtype=torch.float32, device=device)
    target, best = torch.empty_like(source), 0.0
    for _ in range(repeats + 1):
        started = clock(source)
        target.copy_(source)
        best = max(best, 2 * source.nbytes / (clock(source) - started))
    return best


@torch.inference_mode()
def steps_of(engine, prefill, cell, steps, static):
    """Seconds of each step of a freshly forked cell, and its cache bytes at the end."""
    groups = engine.fork(prefill, [cell], steps)
    fed = prefill.logits.argmax(-1, keepdim=True)
    if static:
        decoder = StaticDecoder(engine.call, groups, capture=engine.device.type == "cuda")
    else:
        decoder = Decoder(engine.call, groups)
    seconds = []
    for _ in range(steps):
        started = clock(fed)
        fed = decoder.step(fed).argmax(-1, keepdim=True)
        seconds.append(clock(fed) - started)
    return seconds, sum(groups[0].measure(0, row).kv_bytes for row in range(len(prefill.logits)))


def summary(runs, kv_bytes, weights, bandwidth):
    """Median step, its floor and its drift over the steps."""
    quarter = max(1, len(runs[0]) // 4)
    step = statistics.median(second for run in runs for second in run[1:])
    floor = (weights + kv_bytes) / bandwidth
    drift = statistics.median(statistics.fmean(run[-quarter:]) / statistics.fmean(run[1 : 1 + quarter]) for run in runs)
    return {
        "step_s": round(step, 5),
        "smallest_s": round(min(second for run in runs for second in run[1:]), 5),
        "floor_s": round(floor, 5),
        "over_floor": round(step / floor, 3),
        "drift": round(drift, 3),
        "kv_mib": round(kv_bytes / 2**20, 1),
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--budget", type=int, default=512)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--model", default="smollm2", help="smollm2, or a shape such as llama3_8b with random weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(processors.threads_of(options.threads))
    build = (
        embedded.smollm2 if options.model == "smollm2" else lambda *args: random_weights.random(options.model, *args)
    )
    engine = Engine(build(options.device, None).model)
    weights = sum(parameter.nbytes for parameter in engine.model.parameters())
    bandwidth = copy_bandwidth(options.device)
    result = {"model": options.model, "tokens": options.tokens, "budget": options.budget, "steps": options.steps}
    result |= {"copy_gb_per_s": round(bandwidth / 1e9, 2), "weight_mib": round(weights / 2**20, 1), "cells": []}
    for batch in options.batches:
        generator = torch.Generator().manual_seed(batch)
        ids = torch.randint(5, engine.config.vocab_size, (batch, options.tokens), generator=generator).to(
            options.device
        )
        cells, measured = cells_of(engine, options.tokens, options.budget), {}
        prefill = engine.prefill(ids, [cell.method for cell in cells.values() if not cell.everything])
        for repeat in range(options.repeats):
            for name, cell in cells.items():
                for static in (False, True):
                    seconds, kv_bytes = steps_of(engine, prefill, cell, options.steps, static)
                    measured.setdefault((name, static), ([], kv_bytes))[0].append(seconds)
                    print(f"batch {batch}, repeat {repeat}: {name}, {sum(seconds):.1f} s", file=sys.stderr)
        for (name, static), (runs, kv_bytes) in measured.items():
            line = {"batch": batch, "cell": name, "static": static, **summary(runs, kv_bytes, weights, bandwidth)}
            result["cells"].append(line)
    bench_document.finish(result, options.out)


if __name__ == "__main__":
    main()
