"""What a whole curve costs against one point: 3 methods at 8 budgets share a prefill and decode together.

    python scripts/bench_curve.py --tokens 2048 --samples 5

A point is one prefill, one method at one budget, and no reference cell; the curve has 24 cells and the reference. Both
run on the same needle prompts, one after the other, sample by sample. The last line is one JSON document.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pvcbench import config
from pvcbench.attempt import Protocol, run_batch
from pvcbench.cells import points
from pvcbench.engine.engine import Engine
from pvcbench.generate import Generate
from pvcbench.progress import Meter
from pvcbench.prompts import Prompter

BUDGETS = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75]
METHODS = ["h2o", "streaming_llm", "random"]


def cells_of(names, budgets, reference):
    """Points of some methods, with or without the reference cell."""
    methods = config.build_methods(config.composed([f"method=[{','.join(names)}]"]).methods)
    return tuple(point for point in points(methods, budgets, "grow") if reference or not point.method.reference)


def main():
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--model", default="smollm2")
    options = parser.parse_args()
    config.torch.set_num_threads(config.threads_of(options.threads))
    settings = config.composed([f"model={options.model}", f"task.lengths=[{options.tokens}]", "task.repeats=100"])
    loaded = config.build(settings.model, "the model", device=config.device_of("auto"), dtype=None)
    task = config.build(settings.task, "the task")
    task.prepare(Prompter(loaded.tokenizer, loaded.chat))
    engine = Engine(loaded.model, loaded.attention)
    protocol = Protocol(True, False, "grow", 0)
    curve, point = cells_of(METHODS, BUDGETS, True), cells_of(METHODS[:1], [0.5], False)
    seconds = {"curve": [], "point": []}
    for index in range(options.samples + 1):
        sample = task.sample(0, index)
        prompt = task.prompter.encode(sample)
        for name, cells in (("point", point), ("curve", curve)):
            started = time.perf_counter()
            rows = run_batch(Generate, engine, loaded, task, [(sample, prompt, cells)], protocol, Meter(1))
            spent = time.perf_counter() - started
            if any(row["error"] for row in rows) or len(rows) != len(cells):
                sys.exit(f"a cell failed: {[row['error'] for row in rows if row['error']]}")
            if index:  # the first sample warms up
                seconds[name].append(spent)
                print(f"sample {index}: {name} of {len(cells)} cells {spent:.2f} s", file=sys.stderr)
    ratios = [whole / one for whole, one in zip(seconds["curve"], seconds["point"], strict=True)]
    result = {"tokens": options.tokens, "samples": options.samples, "threads": config.torch.get_num_threads()}
    result |= {"cells": len(curve), "point_s": round(statistics.median(seconds["point"]), 3)}
    result |= {"curve_s": round(statistics.median(seconds["curve"]), 3)}
    result |= {"curve_over_point": round(statistics.median(ratios), 3)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
