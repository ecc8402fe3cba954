"""How the cost of a run grows with its methods, against a run for each method.

    python scripts/bench_methods.py --counts 1 5 10 20 40 --threads 1

Methods are drawn in a random order from those of an experiment (`methods_needle`), and each count takes the first so
many, at the experiment's sizes, on one needle prompt: one prefill, one pass of observations, all cells decoded at once.
Beside them every method runs alone, as a study does that starts a run for each. The full cache is in every run. Costs
are processor seconds of whole samples, answers and scores included. The last line is one JSON document.
"""

import argparse
import os
import random
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
from pvcbench.engine.passes import Writer
from pvcbench.errors import UserError
from pvcbench.evaluation.cells import Point, points
from pvcbench.evaluation.generation import Generate
from pvcbench.evaluation.item import WorkItem
from pvcbench.evaluation.progress import Meter
from pvcbench.evaluation.row import Protocol
from pvcbench.evaluation.shared_prefill import run_batch

COUNTS = [1, 5, 10, 20, 40]


def options_of(arguments=None) -> argparse.Namespace:
    """What can be asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", default="smollm2", help="a name of conf/model (default: smollm2)")
    parser.add_argument("--experiment", default="methods_needle", help="whose methods (default: methods_needle)")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of a prompt (default: 1024)")
    parser.add_argument("--samples", type=int, default=3, help="samples, each with an order of its own (default: 3)")
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="numbers of methods (default: 1 to 40)")
    parser.add_argument("--threads", type=int, default=None, help="threads (default: all cores)")
    parser.add_argument("--out", type=Path, help="write the JSON document here as well")
    return parser.parse_args(arguments)


class Runs:
    """A model, a needle task and the methods of an experiment."""

    def __init__(self, options: argparse.Namespace):
        asked = [f"+experiment={options.experiment}", f"model={options.model}", f"task.lengths=[{options.tokens}]"]
        config = compose.composed(asked)
        self.budgets = list(config.budgets)
        self.loaded = building.build(config.model, "the model", device="cpu", dtype=None)
        self.task = building.build(config.task, "the task")
        self.task.prepare(self.loaded.prompter())
        built = building.build_methods(config.methods)
        self.full = {name: method for name, method in built.items() if method.reference}
        self.methods = {name: method for name, method in built.items() if not method.reference}
        writer = Writer(self.task.prompter.bare, self.task.prompter.after)
        self.engine = Engine(self.loaded.model, self.loaded.attention, writer=writer)
        self.protocol = Protocol(bool(config.query_aware), bool(config.refeed_last), "grow", 0)

    def cells(self, names) -> tuple[Point, ...]:
        """The cells of these methods, the full cache first."""
        return tuple(points(self.full | {name: self.methods[name] for name in names}, self.budgets, "grow"))

    def seconds(self, number: int, names) -> float:
        """Processor seconds of one sample with these methods."""
        sample = self.task.sample(0, number)
        item = WorkItem(sample, self.task.encode(sample), self.cells(names))
        started = time.process_time()
        run_batch(Generate, self.engine, self.loaded, self.task, [item], self.protocol, Meter(1))
        return time.process_time() - started


def measure(options: argparse.Namespace) -> dict:
    """Seconds by number of methods, together and alone, for each sample."""
    torch.set_num_threads(processors.threads_of(options.threads))
    runs = Runs(options)
    counts, known = sorted(set(options.counts)), len(runs.methods)
    if counts[0] < 1 or counts[-1] > known:
        raise UserError(f"--counts must lie between 1 and {known}, the methods of {options.experiment}")
    runs.seconds(0, list(runs.methods)[:1])  # warms up
    together, alone = {count: [] for count in counts}, {count: [] for count in counts}
    for number in range(options.samples):
        order = random.Random(number).sample(sorted(runs.methods), counts[-1])
        singly = [runs.seconds(number, [name]) for name in order]
        for count in counts:
            together[count].append(runs.seconds(number, order[:count]))
            alone[count].append(sum(singly[:count]))
        print(f"sample {number}: {counts[-1]} methods {together[counts[-1]][-1]:.0f} s, alone {sum(singly):.0f} s",
              file=sys.stderr)  # fmt: skip
    result = {"experiment": options.experiment, "tokens": options.tokens, "samples": options.samples}
    result |= {"budgets": runs.budgets, "counts": counts, "cells": [len(runs.cells(order[:n])) for n in counts]}
    for name, found in (("together_s", together), ("alone_s", alone)):
        result |= {name: [round(statistics.median(found[n]), 2) for n in counts]}
        result |= {f"{name}_range": [[round(min(found[n]), 2), round(max(found[n]), 2)] for n in counts]}
    ratios = [[one / other for one, other in zip(together[n], alone[n], strict=True)] for n in counts]
    result |= {"together_over_alone": [round(statistics.median(one), 3) for one in ratios]}
    return result | {"threads": torch.get_num_threads()}


def main() -> None:
    """Measures and prints; 2 for a user's error."""
    bench_document.measured(measure, options_of())


if __name__ == "__main__":
    main()
