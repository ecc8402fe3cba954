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


class Side:
    """A model, its needle contexts and the cells that both sides run."""

    def __init__(self, options: argparse.Namespace):
        asked = [f"task.needles={options.questions}", f"task.questions={options.questions}", "task.repeats=100"]
        asked += [f"task.lengths=[{options.tokens}]", f"task.max_new_tokens={options.max_new_tokens}"]
        config = compose.composed([f"model={options.model}", f"method=[{','.join(options.methods)}]", *asked])
        self.loaded = building.build(config.model, "the model", device="cpu", dtype=None)
        self.task = building.build(config.task, "the task")
        self.task.prepare(self.loaded.prompter())
        self.cells = tuple(points(building.build_methods(config.methods), BUDGETS, "grow"))
        self.engine, self.questions = Engine(self.loaded.model, self.loaded.attention), options.questions

    def items(self, context: int) -> list[WorkItem]:
        """All questions on a context."""
        numbers = range(context * self.questions, (context + 1) * self.questions)
        samples = [self.task.sample(0, number) for number in numbers]
        return [WorkItem(sample, self.task.encode(sample), self.cells) for sample in samples]

    def run(self, batches: list[list[WorkItem]]) -> tuple[float, dict]:
        """Seconds of some batches, and their rows by sample and cell."""
        protocol, started = Protocol(False, False, "grow", 0), time.perf_counter()
        rows = []
        for batch in batches:
            rows += run_batch(Generate, self.engine, self.loaded, self.task, batch, protocol, Meter(1))
        spent = time.perf_counter() - started
        return spent, {(row["sample"], row["method"], row["budget"]): row for row in rows}


def measure(options: argparse.Namespace) -> dict:
    """Seconds of each context on both sides, and how many rows differ."""
    torch.set_num_threads(processors.threads_of(options.threads))
    side, together, alone, different, rows = Side(options), [], [], 0, 0
    side.run([side.items(99)[:1]])  # warms up
    for context in range(options.contexts):
        batch = side.items(context)
        spent, one = side.run([batch])
        singly, other = side.run([[item] for item in batch])
        together.append(spent)
        alone.append(singly)
        rows += len(one)
        different += sum(bool(row_differences(one[key], other[key], None)[0]) for key in one)
        print(f"context {context}: together {spent:.1f} s, alone {singly:.1f} s", file=sys.stderr)
    ratios = [one / other for one, other in zip(together, alone, strict=True)]
    result = {"tokens": options.tokens, "contexts": options.contexts, "questions": options.questions}
    result |= {"cells": len(side.cells), "together_s": round(statistics.median(together), 2)}
    result |= {
        "alone_s": round(statistics.median(alone), 2),
        "together_over_alone": round(statistics.median(ratios), 3),
    }
    return result | {"rows": rows, "rows_that_differ": different, "threads": torch.get_num_threads()}


def main() -> None:
    """Measures and prints; 2 for a user's error."""
    bench_document.measured(measure, options_of())


if __name__ == "__main__":
    main()
