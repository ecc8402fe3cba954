"""What scoring costs: H2O's observed prefill, a window of 64 rows and PvC's pruned prefill against the plain one.

    python scripts/bench_scoring.py --lengths 1024 2048 4096 8192
    python scripts/bench_scoring.py --peer .venv-peers/kvpress/bin/python

All prefills compute the last token's logits only and run in turn on the same tokens, after one turn of each at the
first length that does not count. A ratio is the median over the
repeats of one repeat's ratio to its plain prefill; the ratios' smallest and largest stand in `NAME_range`.
`h2o_added_mib` is the growth of the peak of resident memory (CPU) or allocated memory (GPU) over the plain prefill's,
each measured in a process of its own. With `--peer` (an environment made by `scripts/peers/setup.sh`) kvpress takes
its turns: its prefill under ObservedAttention against its own plain one, `peer_ratio` and `peer_added_mib`; where it
needs more memory than there is, or more than `--peer-limit` seconds by an estimate from the length before, both are
null and `peer_note` says so. The last line is one JSON document.
"""

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as the command line does: a side that waits must not spin
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from methods.h2o import H2O
from methods.pvc import PvC
from peers.client import Peer, PeerFailed, check_python, peak_of
from peers.scoring import PeerColumn, median, ratios
from pvcbench.costs import bench_document
from pvcbench.engine.engine import Engine
from pvcbench.engine.observer import clock
from pvcbench.errors import OutOfReach, UserError
from pvcbench.models.embedded import ensure
from scripts.bench_costs import Window

TARGETS = {"h2o": 1.12, "window": 1.02}  # of the plain prefill on a CPU, at TARGET_LENGTH
TARGET_LENGTH = 4096


def engine_of(model, device):
    """The embedded model, a folder, or random weights of a transformers config file, in an engine."""
    model = ensure() if model == "smollm2" else model
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
        "window": lambda: engine.prefill(ids, [Window()]),
        "pvc": lambda: engine.prefill(ids, pruner=pruner),
    }


def tokens(engine, length):
    """The same random tokens every time."""
    generator = torch.Generator().manual_seed(length)
    return torch.randint(5, engine.config.vocab_size, (1, length), generator=generator).to(engine.device)


def added_mib(name, length, options):
    """Growth of the peak of one prefill over the plain one's, each in a process of its own."""
    command = [sys.executable, __file__, "--model", str(options.model), "--device", options.device]
    command += ["--threads", str(torch.get_num_threads()), "--budget", str(options.budget)]
    plain, own = (peak_of([*command, "--peak", which, str(length)]) for which in ("plain", name))
    return round(own - plain, 1)


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


def measure(engine, length, repeats, warm, options, peer):
    """All columns of one length; `warm` says that the first turn does not count."""
    runs = runs_of(engine, tokens(engine, length), options.budget)
    seconds = {name: [] for name in runs}
    if peer:
        peer.begin(length, repeats + warm)
    for turn in range(repeats + warm):
        for name, run in runs.items():
            started = time.perf_counter()
            prefill = run()
            clock(prefill.logits)
            if turn >= warm:
                seconds[name].append(time.perf_counter() - started)
            del prefill
        if peer:
            peer.turn(length, turn >= warm)
    row = {f"{name}_s": median(values) for name, values in seconds.items()}
    for name, key in (("h2o", "h2o_ratio"), ("window", "window_ratio"), ("pvc", "pvc_prefill_ratio")):
        row |= ratios(key, seconds[name], seconds["plain"])
    row["h2o_added_mib"] = added_mib("h2o", length, options)
    return row | (peer.finish(length) if peer else {})


def targets(result):
    """Whether the targets are met at their length; null where it was not measured."""
    found = {}
    for name, most in TARGETS.items():
        value = dict(zip(result["lengths"], result[f"{name}_ratio"], strict=True)).get(TARGET_LENGTH)
        met = None if value is None else value <= most
        found[f"{name}_target"] = {"at_most": most, "at": TARGET_LENGTH, "ratio": value, "met": met}
    return found


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--repeats", type=int, nargs="+", default=[5], help="one number, or one a length")
    parser.add_argument("--budget", type=float, default=0.5, help="PvC's mean budget")
    parser.add_argument("--model", default="smollm2", help="smollm2, a model folder, or a config.json")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--peer", type=Path, default=None, help="the python of kvpress's environment")
    parser.add_argument("--peer-limit", type=float, default=3600, help="seconds for the peer at one length")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--peak", nargs=2, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if len(options.repeats) == 1:
        options.repeats *= len(options.lengths)
    if len(options.repeats) != len(options.lengths):
        raise UserError(
            f"--repeats has {len(options.repeats)} numbers for {len(options.lengths)} lengths: one, or one each"
        )
    if options.peer:
        check_python(options.peer)
    if options.peer and (options.device != "cpu" or options.model.endswith(".json")):
        raise UserError("--peer runs on the CPU, on the embedded model or a model folder")
    return options


def run(options):
    """Measures length by length; a length that fails ends the run after the result of those before."""
    if options.threads:
        torch.set_num_threads(options.threads)
    engine = engine_of(options.model, options.device)
    if options.peak:
        report_peak(options.peak[0], int(options.peak[1]), engine, options.budget)
        return
    peer, rows, error = None, [], None
    if options.peer:
        folder = ensure() if options.model == "smollm2" else options.model
        worker = Peer(options.peer, folder, torch.get_num_threads())
        peer = PeerColumn(worker, options.peer_limit)
    try:
        for length, repeats in zip(options.lengths, options.repeats, strict=True):
            rows.append(measure(engine, length, repeats, not rows, options, peer))
            print(length, rows[-1], file=sys.stderr)
    except (PeerFailed, RuntimeError, MemoryError) as problem:
        if not rows:
            raise
        error = f"{type(problem).__name__}: {' '.join(str(problem).split())}"
    finally:
        if peer:
            peer.peer.close()
    result = {"lengths": options.lengths[: len(rows)]} | {key: [row[key] for row in rows] for key in rows[0]}
    result |= targets(result) | {"threads": torch.get_num_threads(), "budget": options.budget}
    result |= {"repeats": options.repeats[: len(rows)], "error": error} | ({"peer": peer.peer.about} if peer else {})
    bench_document.finish(result, options.out)
    if error:
        sys.exit(f"bench_scoring: {error}")


def main():
    """Measures and prints; 2 for a user's error, 1 for a failure."""
    try:
        run(arguments())
    except (UserError, OutOfReach, PeerFailed) as error:
        print(f"bench_scoring: {error}", file=sys.stderr)
        sys.exit(1 if isinstance(error, PeerFailed) else 2)


if __name__ == "__main__":
    main()
