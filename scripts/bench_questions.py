"""What many questions on one context cost together, against asking them one at a time.

    python scripts/bench_questions.py --tokens 1024 --contexts 20 --questions 8

Both sides compress the same needle contexts before any question is seen, with the same methods and sizes, one side
after the other, context by context. Together, a context is prefilled and compressed once and every question goes
through copies of its caches; alone, each question begins anew. Rows must be equal in all but times. Seconds are those
of whole contexts, answers and their scores included. The last line is one JSON document.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "10000")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from pvcbench.config import building, compose, processors
from pvcbench.costs import bench_document
from pvcbench.engine.engine import Engine
from pvcbench.errors import UserError
from pvcbench.evaluation.cells import points
from pvcbench.evaluation.generation import Generate
from pvcbench.evaluation.item import WorkItem
from pvcbench.evaluation.progress import Meter
from pvcbench.evaluation.row import Protocol
from pvcbench.evaluation.shared_prefill import run_batch
from pvcbench.runs.row_comparison import row_differences

METHODS, BUDGETS = ["h2o", "snapkv", "streaming_llm", "keydiff"], [0.1, 0.25, 0.5]


def options_of(arguments=None) -> argparse.Namespace:
    """What can be asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", default="smollm2", help="a name of conf/model (default: smollm2)")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of a prompt (default: 1024)")
    parser.add_argument("--contexts", type=int, default=3, help="contexts (default: 3)")
    parser.add_argument("--questions", type=int, default=8, help="questions on each (default: 8)")
    parser.add_argument("--methods", nargs="+", default=METHODS, help=f"methods (default: {' '.join(METHODS)})")
    parser.add_argument("--max-new-tokens", type=int, default=16, help="tokens of the longest answer (default: 16)")
    parser.add_argument("--threads", type=int, default=None, help="threads (default: all cores)")
    parser.add_argument("--out", type=Path, help="write the JSON document here as well")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace) -> dict:
    """Seconds of each context on both sides, and how many rows differ."""
    torch.set_num_threads(processors.threads_of(options.threads))
    asked = [f"task.needles={options.questions}", f"task.questions={options.questions}", "task.value=word"]
    asked += [f"task.lengths=[{options.tokens}]", "task.repeats=100", f"task.max_new_tokens={options.max_new_tokens}"]
    config = compose.composed([f"model={options.model}", f"method=[{','.join(options.methods)}]", *asked])
    loaded = building.build(config.model, "the model", device="cpu", dtype=None)
    task = building.build(config.task, "the task")
    task.prepare(loaded.prompter())
    cells = tuple(points(building.build_methods(config.methods), BUDGETS, "grow"))
    engine, protocol = Engine(loaded.model, loaded.attention), Protocol(False, False, "grow", 0)
    seconds, different, rows = {"together": [], "alone": []}, 0, 0

    def run(batch):
        return run_batch(Generate, engine, loaded, task, batch, protocol, Meter(1))

    def items(context):
        numbers = range(context * options.questions, (context + 1) * options.questions)
        return [WorkItem(sample, task.encode(sample), cells) for sample in (task.sample(0, index) for index in numbers)]

    run(items(99)[:1])  # warms up
    for context in range(options.contexts):
        batch, found = items(context), {}
        for side, batches in {"together": [batch], "alone": [[item] for item in batch]}.items():
            started = time.perf_counter()
            found[side] = [row for one in batches for row in run(one)]
            seconds[side].append(time.perf_counter() - started)
        one, other = ({(row["sample"], row["method"], row["budget"]): row for row in side} for side in found.values())
        rows += len(one)
        different += sum(bool(row_differences(one[key], other[key], None)[0]) for key in one)
        print(
            f"context {context}: together {seconds['together'][-1]:.1f} s, alone {seconds['alone'][-1]:.1f} s",
            file=sys.stderr,
        )
    ratios = [one / other for one, other in zip(seconds["together"], seconds["alone"], strict=True)]
    return {
        "tokens": options.tokens,
        "contexts": options.contexts,
        "questions": options.questions,
        "cells": len(cells),
        "together_s": round(statistics.median(seconds["together"]), 2),
        "alone_s": round(statistics.median(seconds["alone"]), 2),
        "together_over_alone": round(statistics.median(ratios), 3),
        "rows": rows,
        "rows_that_differ": different,
    }


def main() -> None:
    """Measures and prints; 2 for a user's error."""
    options = options_of()
    try:
        result = measure(options)
    except UserError as error:
        print(f"bench_questions: {error}", file=sys.stderr)
        sys.exit(2)
    bench_document.finish(result | {"threads": torch.get_num_threads()}, options.out)


if __name__ == "__main__":
    main()
