"""What scoring costs: H2O's observed prefill and PvC's pruned prefill against the plain one, at several lengths.

    python scripts/bench_scoring.py --lengths 1024 2048 4096 8192

All prefills compute the last token's logits only and run in turn on the same tokens; the ratio is that of medians.
`h2o_added_mib` is the growth of the peak of resident memory (CPU) or allocated memory (GPU) over the plain prefill's,
each measured in a process of its own. The last line is one JSON document.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from methods.h2o import H2O
from methods.pvc import PvC
from pvcbench.engine.engine import Engine
from pvcbench.engine.observe import clock


def engine_of(model, device):
    """The embedded model, a folder, or random weights of a transformers config file, in an engine."""
    if model == "smollm2":
        from pvcbench.embedded import ensure

        model = ensure()
    if str(model).endswith(".json"):
        built = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model), dtype=torch.bfloat16)
    else:
        built = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32 if device == "cpu" else torch.bfloat16)
    return Engine(built.eval().to(device))


def runs_of(engine, ids, budget):
    """The prefills to compare, by name."""
    pruner = PvC().resolve(int(budget * ids.shape[1]), engine.shape(ids.shape[1]))
    return {
        "plain": lambda: engine.prefill(ids),
        "h2o": lambda: engine.prefill(ids, [H2O()]),
        "pvc": lambda: engine.prefill(ids, pruner=pruner),
    }


def tokens(engine, length):
    """The same random tokens every time."""
    generator = torch.Generator().manual_seed(length)
    return torch.randint(5, engine.config.vocab_size, (1, length), generator=generator).to(engine.device)


def peak_mib(name, length, model, device):
    """Peak memory of one prefill, in a process of its own."""
    command = [sys.executable, __file__, "--model", str(model), "--device", device, "--peak", name, str(length)]
    # every large block mapped on its own and given back at once: what is resident is what is in use
    exact = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}
    run = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **exact})
    output = run.stdout
    return float(output.strip().splitlines()[-1])


def report_peak(name, length, engine, budget):
    """Prints the peak of this process after one prefill."""
    ids = tokens(engine, length)
    run = runs_of(engine, ids, budget)[name]
    if engine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        run()
        print(torch.cuda.max_memory_allocated() / 2**20)
        return
    Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak of loading the model
    prefill = run()
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    del prefill
    print(int(peak.split()[1]) / 2**10)


def main():
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--budget", type=float, default=0.5, help="PvC's mean budget")
    parser.add_argument("--model", default="smollm2", help="smollm2, a model folder, or a config.json")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--peak", nargs=2, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    engine = engine_of(options.model, options.device)
    if options.peak:
        report_peak(options.peak[0], int(options.peak[1]), engine, options.budget)
        return
    result = {"lengths": options.lengths, "h2o_ratio": [], "h2o_added_mib": [], "pvc_prefill_ratio": [], "plain_s": []}
    for length in options.lengths:
        runs = runs_of(engine, tokens(engine, length), options.budget)
        seconds = {name: [] for name in runs}
        for repeat in range(options.repeats + 1):
            for name, run in runs.items():
                started = time.perf_counter()
                prefill = run()
                clock(prefill.logits)
                if repeat:  # the first warms up
                    seconds[name].append(time.perf_counter() - started)
        middle = {name: statistics.median(values) for name, values in seconds.items()}
        result["plain_s"].append(round(middle["plain"], 3))
        result["h2o_ratio"].append(round(middle["h2o"] / middle["plain"], 3))
        result["pvc_prefill_ratio"].append(round(middle["pvc"] / middle["plain"], 3))
        peaks = {name: peak_mib(name, length, options.model, options.device) for name in ("plain", "h2o")}
        result["h2o_added_mib"].append(round(peaks["h2o"] - peaks["plain"], 1))
        print({name: round(value, 2) for name, value in middle.items()}, result["h2o_added_mib"][-1], file=sys.stderr)
    print(json.dumps(result | {"threads": torch.get_num_threads(), "budget": options.budget}))


if __name__ == "__main__":
    main()
