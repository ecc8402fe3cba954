"""What many questions on one context cost together, against asking them one at a time.

    python scripts/bench_questions.py --tokens 1024 --contexts 20 --questions 8
    python scripts/bench_questions.py --contexts 20 --peer .venv-peers/kvpress/bin/python --peer-contexts 3

Both sides compress the same contexts before any question is seen, with the same methods and sizes, one side after the
other, context by context. Together, a context is prefilled and compressed once and every question goes through copies
of its caches; alone, each question begins anew. Rows must be equal in all but times. Contexts are needle texts with a
needle for every question, or pairs of a key and a value (lost in the middle). With `--peer` (an environment made by
`scripts/peers/setup.sh`) kvpress then answers the same questions on the first contexts by its own grouping, cell by
cell, while ours waits: it compresses a context once for each cell and answers its questions one after the other.
Seconds are those of whole contexts, answers and their scores included. The last line is one JSON document.
"""

import argparse
import os
import statistics
import sys
import time
from contextlib import nullcontext
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "10000")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from peers import questions as peers
from peers.client import Peer, PeerFailed, check_methods
from peers.curve import OVERRIDES
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
from pvcbench.runs.row_comparison import row_differences

METHODS, BUDGETS = ["h2o", "snapkv_kvpress", "streaming_llm", "keydiff"], [0.1, 0.25, 0.5]
PAIR = 80  # tokens of a pair, about: of as many as fit into a context
TASKS = {
    "needles": lambda options: [
        "task=needle",
        f"task.needles={options.questions}",
        f"task.questions={options.questions}",
        f"task.lengths=[{options.tokens}]",
        "task.repeats=100",
    ],
    "pairs": lambda options: [
        "task=qa",
        "task.data=lost_in_the_middle_kv",
        f"task.settings={{pairs: {max(options.questions, options.tokens // PAIR)}, questions: {options.questions}}}",
    ],
}


def options_of(arguments=None) -> argparse.Namespace:
    """What can be asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", default="smollm2", help="a name of conf/model (default: smollm2)")
    parser.add_argument("--task", default="needles", choices=TASKS, help="what the contexts are (default: needles)")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of a prompt, about (default: 1024)")
    parser.add_argument("--contexts", type=int, default=3, help="contexts (default: 3)")
    parser.add_argument("--questions", type=int, default=8, help="questions on each (default: 8)")
    parser.add_argument("--methods", nargs="+", default=METHODS, help=f"methods (default: {' '.join(METHODS)})")
    parser.add_argument("--max-new-tokens", type=int, default=16, help="tokens of the longest answer (default: 16)")
    parser.add_argument("--threads", type=int, default=None, help="threads (default: all cores)")
    parser.add_argument("--peer", type=Path, help="the python of kvpress's environment")
    parser.add_argument("--peer-contexts", type=int, default=3, help="contexts that the peer answers (default: 3)")
    parser.add_argument("--out", type=Path, help="write the JSON document here as well")
    options = parser.parse_args(arguments)
    if options.peer:
        check_methods(options.methods, peers.PRESSES, options.peer)
        if options.model != "smollm2":
            raise UserError("--peer compares on the embedded model only: leave out --model")
    return options


class Side:
    """A model, its contexts and the cells that both sides run."""

    def __init__(self, options: argparse.Namespace):
        overrides = OVERRIDES if "streaming_llm" in options.methods else ()
        asked = [*TASKS[options.task](options), f"task.max_new_tokens={options.max_new_tokens}", *overrides]
        config = compose.composed([f"model={options.model}", f"method=[{','.join(options.methods)}]", *asked])
        self.loaded = building.build(config.model, "the model", device="cpu", dtype=None)
        self.task = building.build(config.task, "the task")
        self.task.validate()
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
    """Seconds of each context on all sides, and how many rows differ."""
    torch.set_num_threads(processors.threads_of(options.threads))
    side, together, alone, different, rows, tokens = Side(options), [], [], 0, 0, []
    side.run([side.items(options.contexts)[:1]])  # warms up
    theirs = peers.Grouped(side.task, side.cells, options.peer_contexts)
    opened = Peer(options.peer, embedded.ensure(), torch.get_num_threads(), side.loaded.ends) if options.peer else None
    with opened or nullcontext() as peer:
        for context in range(options.contexts):
            batch = side.items(context)
            tokens.append(max(len(item.prompt.ids) for item in batch))
            spent, one = side.run([batch])
            singly, other = side.run([[item] for item in batch])
            together.append(spent)
            alone.append(singly)
            rows += len(one)
            different += sum(bool(row_differences(one[key], other[key], None)[0]) for key in one)
            failed = [row["error"] for row in one.values() if row["error"]]
            if failed:
                raise UserError(f"a cell failed: {failed[0]}")
            if peer is not None:
                theirs.ask(peer, batch, spent, one)
            print(f"context {context}: together {spent:.1f} s, alone {singly:.1f} s", file=sys.stderr)
    result = {"task": options.task, "tokens": round(statistics.median(tokens)), "contexts": options.contexts}
    result |= {"questions": options.questions, "cells": len(side.cells)}
    result |= {"together_s": round(statistics.median(together), 2), "alone_s": round(statistics.median(alone), 2)}
    ratios = [one / other for one, other in zip(together, alone, strict=True)]
    result |= {"together_over_alone": round(statistics.median(ratios), 3)}
    result |= {"rows": rows, "rows_that_differ": different, "threads": torch.get_num_threads()}
    return result | ({"peer": opened.about | theirs.report()} if opened else {})


def main() -> None:
    """Measures and prints; 2 for a user's error, 1 where the peer fails."""
    try:
        bench_document.measured(measure, options_of())
    except UserError as error:
        print(f"bench_questions: {error}", file=sys.stderr)
        sys.exit(2)
    except PeerFailed as error:
        print(f"bench_questions: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
