"""What a whole curve costs against one point: 3 methods at 8 budgets share a prefill and decode together.

    python scripts/bench_curve.py --tokens 2048 --samples 5
    python scripts/bench_curve.py --tokens 2048 --samples 5 --peer .venv-peers/kvpress/bin/python

A point is one prefill, one method at one budget, and no reference cell; the curve has 24 cells and the reference. Both
run on the same needle prompts, one after the other, sample by sample. With `--peer` (an environment made by
`scripts/peers/setup.sh`) kvpress then runs the same points on the same sample, one by one, while ours waits: model
loaded once, warmed up, the same tokens, threads, stops and longest answer. It compresses the context before it sees
the question, so both sides do then, and StreamingLLM stays at original positions. Seconds are those of whole samples,
answers and their scores included. The last line is one JSON document.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as the command line does: a side that waits must not spin
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from peers import curve as peers
from peers.client import Peer, PeerFailed, check_methods
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
from pvcbench.models import embedded

BUDGETS = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75]
METHODS = ["h2o", "streaming_llm", "random"]


def cells_of(names, budgets, reference, overrides=()):
    """Points of some methods, with or without the reference cell."""
    methods = building.build_methods(compose.composed([f"method=[{','.join(names)}]", *overrides]).methods)
    return tuple(point for point in points(methods, budgets, "grow") if reference or not point.method.reference)


class CellFailed(Exception):
    """A cell of ours could not be run."""


class Curves:
    """The curves to time, on needle prompts of one length."""

    def __init__(self, options):
        torch.set_num_threads(processors.threads_of(options.threads))
        self.methods = options.methods
        self.budgets = [BUDGETS[number * len(BUDGETS) // options.budgets] for number in range(options.budgets)]
        settings = compose.composed(
            [f"model={options.model}", f"task.lengths=[{options.tokens}]", "task.repeats=100"]
            + ([f"task.max_new_tokens={options.max_new_tokens}"] if options.max_new_tokens else [])
        )
        device = "cpu" if options.peer else processors.device_of("auto")
        self.loaded = building.build(settings.model, "the model", device=device, dtype=None)
        self.task = building.build(settings.task, "the task")
        self.task.prepare(self.loaded.prompter())
        self.engine = Engine(self.loaded.model, self.loaded.attention)
        self.protocol = Protocol(options.peer is None, False, "grow", 0)
        overrides = peers.OVERRIDES if options.peer and "streaming_llm" in self.methods else ()
        self.cells = {"point": cells_of(self.methods[:1], [0.5], False)}
        self.cells["curve"] = cells_of(self.methods, self.budgets, True, overrides)
        fewer = [name for name in self.methods if name not in peers.OBSERVED]
        if options.peer and fewer:
            self.cells["curve_without_observed"] = cells_of(fewer, self.budgets, True, overrides)
        self.seconds = {name: [] for name in self.cells}

    def sample(self, index):
        """A sample and its tokens."""
        sample = self.task.sample(0, index)
        return sample, self.task.prompter.encode(sample)

    def run(self, sample, prompt):
        """Runs everything once on a sample; returns the seconds by name and the whole curve's rows."""
        seconds, kept = {}, []
        for name, cells in self.cells.items():
            started = time.perf_counter()
            batch = [WorkItem(sample, prompt, cells)]
            rows = run_batch(Generate, self.engine, self.loaded, self.task, batch, self.protocol, Meter(1))
            seconds[name] = time.perf_counter() - started
            if any(row["error"] for row in rows) or len(rows) != len(cells):
                raise CellFailed(f"a cell failed: {[row['error'] for row in rows if row['error']]}")
            kept = rows if name == "curve" else kept
        return seconds, kept

    def report(self):
        """The curve against the point."""
        point, curve = self.seconds["point"], self.seconds["curve"]
        ratios = [whole / one for whole, one in zip(curve, point, strict=True)]
        result = {"cells": len(self.cells["curve"]), "point_s": round(statistics.median(point), 3)}
        result |= {"curve_s": round(statistics.median(curve), 3)}
        return result | {"curve_over_point": round(statistics.median(ratios), 3)}


class Comparison:
    """The peer's side of the same samples."""

    def __init__(self, options, curves):
        self.curves, self.ours, self.theirs = curves, peers.Side(), peers.Side()
        self.peer = Peer(options.peer, embedded.ensure(), torch.get_num_threads(), curves.loaded.ends)
        self.points = list(peers.points(curves.methods, curves.budgets))

    def warm_up(self, sample, prompt):
        """The full cache and one point of each press."""
        chosen = [point for point in self.points if point[1] in (1.0, self.curves.budgets[0])]
        peers.ask(self.peer, self.curves.task, sample, prompt, chosen, peers.Side())

    def run(self, sample, prompt, seconds, rows):
        """The peer's turn on a sample that ours has run."""
        self.ours.seconds.append(seconds["curve"])
        self.ours.seconds_without_observed.append(seconds.get("curve_without_observed", seconds["curve"]))
        peers.note(self.ours, rows)
        peers.ask(self.peer, self.curves.task, sample, prompt, self.points, self.theirs)
        print(f"sample {sample.id}: peer, {len(self.points)} points {self.theirs.seconds[-1]:.2f} s", file=sys.stderr)

    def report(self):
        """Ratios, and what makes them comparable."""
        curves = self.curves
        whole = (sorted(curves.methods), curves.budgets) == (sorted(METHODS), BUDGETS)
        protocol = {"query_aware": False, "decode": "grow", "overrides": list(peers.OVERRIDES)}
        result = {"peer": self.peer.about, "protocol": protocol}
        if not self.theirs.seconds:
            return result
        return result | peers.report(self.ours, self.theirs, curves.methods, whole, self.tokens_of)

    def tokens_of(self, text):
        """How many tokens a text is."""
        return len(self.curves.loaded.tokenizer(text, add_special_tokens=False).input_ids)


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--budgets", type=int, default=len(BUDGETS), choices=range(1, 9), help="how many of them")
    parser.add_argument("--max-new-tokens", type=int, default=None)
    parser.add_argument("--peer", type=Path, default=None, help="the python of kvpress's environment")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    if options.peer:
        check_methods(options.methods, peers.PRESSES, options.peer)
        if options.model != "smollm2":
            raise UserError("--peer compares on the embedded model only: leave out --model")
    return options


def measure(options):
    """Runs sample after sample, the first as a warm-up; what a failing peer leaves unfinished is left out."""
    curves = Curves(options)
    comparison = Comparison(options, curves) if options.peer else None
    failed = None
    try:
        for index in range(options.samples + 1):
            sample, prompt = curves.sample(index)
            seconds, rows = curves.run(sample, prompt)
            if index == 0:
                if comparison:
                    comparison.warm_up(sample, prompt)
                continue
            for name, spent in seconds.items():
                curves.seconds[name].append(spent)
                print(f"sample {index}: {name} of {len(curves.cells[name])} cells {spent:.2f} s", file=sys.stderr)
            if comparison:
                comparison.run(sample, prompt, seconds, rows)
    except (PeerFailed, CellFailed) as error:
        if not curves.seconds["curve"]:
            raise
        failed = str(error)
    finally:
        if comparison:
            comparison.peer.close()
    result = {"tokens": options.tokens, "samples": options.samples, "threads": torch.get_num_threads()}
    return result | curves.report() | {"error": failed} | (comparison.report() if comparison else {})


def main():
    """Measures and prints; 2 for a user's error, 1 for a failure, after whatever was measured."""
    try:
        options = arguments()
        result = measure(options)
    except (UserError, PeerFailed, CellFailed) as error:
        print(f"bench_curve: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
    bench_document.finish(result, options.out)
    if result["error"]:
        sys.exit(f"bench_curve: {result['error']}")
    if not result.get("full_caches_agree", True):
        sys.exit("bench_curve: the full caches of the two sides disagree on most answers: the ratios mean nothing")


if __name__ == "__main__":
    main()
