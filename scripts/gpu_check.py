"""Checks and measures the engine on a GPU and prints one JSON document; needs torch, transformers, triton, jaxtyping.

    python scripts/gpu_check.py --out results/bench/gpu_check.json
    python scripts/gpu_check.py --quick    # in 90 seconds: what is right, and one length
    python scripts/gpu_check.py --small    # everything at toy size; without a GPU in Triton's interpreter

The model has the shape of an 8B Llama and random weights. A section that fails or runs out of time becomes an `error`
entry and the others still run. Times are medians of interleaved runs after a warm-up; ratios are over plain prefill.
"""

import argparse
import gc
import json
import multiprocessing
import os
import signal
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

if "--small" in sys.argv and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported

from transformers import LlamaConfig, LlamaForCausalLM

from methods.h2o import H2O
from methods.pvc import PvC
from pvcbench.costs import bench_document
from pvcbench.engine.attention import Rule, attention_with_lse, observed_attention, prompt_attention, slot_weights
from pvcbench.engine.engine import Engine
from pvcbench.engine.evict import Cell
from pvcbench.engine.kernels import interface
from pvcbench.engine.observer import clock
from pvcbench.policy import Method
from scripts import gpu_agreement

SECONDS = {"copy": 20, "correct": 120, "methods": 40, "families": 40, "protocols": 20}  # at most, per section
SECONDS |= {"tune": 60, "prefill": 140, "decode": 80, "long": 80}
TOTAL, QUICK = 470, 88  # seconds for all of them
QUICK_SECTIONS = ("copy", "correct", "methods", "families", "protocols", "prefill")
TARGETS = {  # what a ratio or a size must stay below
    "h2o_prefill_ratio": 1.3,
    "window_prefill_ratio": 1.03,
    "pvc_76_prefill_ratio": 1.0,
    "pvc_50_prefill_ratio": 0.6,
    "long_peak_gb": 80.0,
}
LARGE = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
LARGE |= {"num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072}
LARGE |= {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}
TINY = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 2}
TINY |= {"num_key_value_heads": 1, "vocab_size": 199, "max_position_embeddings": 4096}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
ROUNDING = {"bfloat16": 3e-2, "float16": 4e-3, "float32": 1e-4}  # of an output; sums are float32 everywhere
COLUMN_TILES = [(128, 64, 8, 3), (128, 64, 4, 3), (128, 128, 8, 3), (64, 64, 4, 3), (256, 64, 8, 3), (128, 32, 4, 4)]


class LastRows(Method):
    """The window of last rows by which SnapKV scores."""

    def row_weights(self, shape, layer):
        return torch.full((min(64, shape.tokens),), 1 / 64, dtype=torch.float64)

    def scores(self, seen):
        return seen.grouped_mass()


class Setup:
    """The sizes of a check and what sections share."""

    def __init__(self, small: bool, quick: bool = False):
        self.small, self.quick, self.cuda = small, quick, torch.cuda.is_available()
        self.device = torch.device("cuda" if self.cuda else "cpu")
        self.dtype = torch.bfloat16 if self.cuda else torch.float32
        self.lengths, self.long = ((96,), 130) if small else ((8192,) if quick else (8192, 32768), 131072)
        self.repeats = 1 if small or quick else 3
        self.made: Engine | None = None
        self.bandwidth: float | None = None  # bytes per second of a copy, reads and writes

    @property
    def engine(self) -> Engine:
        """The model of the check, made when it is first needed."""
        if self.made is None:
            self.made = Engine(llama(TINY if self.small else LARGE, self.device, self.dtype), backend="triton")
        return self.made

    def tokens(self, length: int):
        """The same random tokens every time."""
        generator = torch.Generator().manual_seed(length)
        return torch.randint(5, self.engine.config.vocab_size, (1, length), generator=generator).to(self.device)

    def forget(self) -> None:
        """Frees what earlier runs left and starts a new peak."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gb(self) -> float | None:
        """The most memory allocated since `forget`."""
        return round(torch.cuda.max_memory_allocated() / 1e9, 3) if self.cuda else None


def llama(shape, device, dtype):
    """A Llama of random weights, made on its device."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return LlamaForCausalLM(LlamaConfig(**shape)).eval()
    finally:
        torch.set_default_dtype(before)


def seconds_of(runs, repeats, device):
    """Median seconds of each run, in turns, after one that warms up."""
    spent = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            started = clock(torch.empty(0, device=device))
            run()
            if repeat:
                spent[name].append(clock(torch.empty(0, device=device)) - started)
    return {name: statistics.median(values) for name, values in spent.items()}


# ---------------------------------------------------------------------------------------------- sections


def copy(setup, result):
    """What the machine does: constants of a cost model."""
    size = 2**20 if setup.small else 2**30
    source = torch.empty(size, dtype=torch.uint8, device=setup.device)
    target, side = torch.empty_like(source), 128 if setup.small else 8192
    left = torch.randn(side, side, dtype=setup.dtype, device=setup.device)
    product = torch.empty_like(left)
    runs = {"copy": lambda: target.copy_(source), "matmul": lambda: torch.mm(left, left, out=product)}
    spent = seconds_of(runs, 5, setup.device)
    setup.bandwidth = 2 * size / spent["copy"]
    result["copy_gb_per_s"] = round(setup.bandwidth / 1e9, 1)
    result["matmul_tflops"] = round(2 * side**3 / spent["matmul"] / 1e12, 3)


def causal_of(logits):
    """Logits of last rows with what lies in their future at -inf."""
    rows, keys = logits.shape[-2:]
    return logits.masked_fill(~torch.ones_like(logits, dtype=torch.bool).tril(keys - rows), float("-inf"))


def kernel_errors(name, dim, device):
    """The largest errors of all kernels against float64 at one dtype and head size, and whether two runs agree."""
    dtype, generator = DTYPES[name], torch.Generator().manual_seed(dim)
    rows, keys = (70, 83) if device == "cpu" else (301, 391)

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    query, key, value = randn(1, 4, rows, dim), randn(1, 1, keys, dim), randn(1, 1, keys, dim)
    weights = torch.rand(1, rows, generator=generator).to(device)
    lengths, scale = torch.tensor([[keys - 9]], device=device), dim**-0.5

    def run():
        lse = interface.row_lse(query, key, scale)
        mass = interface.column_mass(query, key, weights, lse, scale, "sum")
        return lse, mass, *interface.slot_decode(query[:, :, -1:], key, value, lengths, scale, weights=True)

    lse, mass, output, attention = run()
    logits = query.double() @ key.double().mT * scale
    causal = causal_of(logits)
    last = logits[:, :, -1:].masked_fill(torch.arange(keys, device=device) >= keys - 9, float("-inf")).softmax(-1)
    wanted = {
        "lse": (lse, causal.logsumexp(-1), 1e-4),
        "mass": (mass[0], torch.einsum("q,bhqk->bk", weights[0].double(), causal.softmax(-1))[None], 1e-3),
        "decode": (output, last @ value.double(), ROUNDING[name]),
        "decode_weights": (attention, last[:, :, 0], 1e-4),
    }
    given = {}
    for kind, seen in (("last", keys), ("square", rows)):  # the rows of a later chunk, and of a whole prompt
        forward, norms = attention_with_lse(query, key[:, :, :seen], value[:, :, :seen], scale)
        right, given[kind] = causal_of(logits[..., :seen]), norms is not None
        wanted[f"forward_{kind}"] = forward, right.softmax(-1) @ value[:, :, :seen].double(), ROUNDING[name]
        if norms is not None:
            wanted[f"forward_lse_{kind}"] = norms, right.logsumexp(-1), 1e-3
    errors = {what: (found - right).abs().max().item() for what, (found, right, _) in wanted.items()}
    same = all(torch.equal(one, other) for one, other in zip((lse, mass, output, attention), run(), strict=True))
    passed = same and all(errors[what] <= limit for what, (_, _, limit) in wanted.items())
    return {"dtype": name, "dim": dim, **errors, "lse_given": given, "same": same, "passed": passed}


def rule_errors(name, dim, device):
    """The largest errors with a soft cap, with sinks and with both against float64: output, mass, a decoding step."""
    dtype, generator, errors = DTYPES[name], torch.Generator().manual_seed(dim), {}
    rows, keys = (70, 83) if device == "cpu" else (301, 391)

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    query, key, value = randn(1, 4, rows, dim), randn(1, 1, keys, dim), randn(1, 1, keys, dim)
    weights, lengths = torch.rand(1, rows, generator=generator).to(device), torch.tensor([[keys - 9]], device=device)
    learnt = torch.randn(4, generator=generator).to(device)
    for kind, cap, sinks in (("cap", 2.0, None), ("sinks", None, learnt), ("both", 2.0, learnt)):
        rule = Rule(dim**-0.5, cap, sinks)
        found = observed_attention(query, key, value, weights, scale=rule, backend="triton")
        wanted = observed_attention(query, key, value, weights, scale=rule, backend="reference")
        step = interface.slot_decode(query[:, :, -1:], key, value, lengths, rule.scale, True, cap=cap, sinks=sinks)
        seen = (part[:, :, : keys - 9].double() for part in (key, value))
        right = slot_weights(query[:, :, -1:].double(), *seen, rule, None)
        parts = {"output": (found[0], wanted[0]), "mass": (found[1], wanted[1]), "decode": (step[0], right[0])}
        parts["decode_weights"] = step[1][..., : keys - 9], right[1][:, :, 0]
        errors[kind] = {what: (one.double() - other).abs().max().item() for what, (one, other) in parts.items()}
    # the output of sinks is rounded twice, and an LSE of the library is off by 1e-3, by which a mass is multiplied
    limits = {"output": 2 * ROUNDING[name], "mass": 5e-3, "decode": ROUNDING[name], "decode_weights": 1e-4}
    passed = all(error <= limits[what] for kind in errors.values() for what, error in kind.items())
    return {"dtype": name, "dim": dim, **errors, "passed": passed}


def engine_agreement(setup, name):
    """A small model's prefill by the kernels against the blocked one: H2O's scores and the better half of entries."""
    shape = TINY if setup.small else TINY | {"hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 2}
    engine = Engine(llama(shape, setup.device, DTYPES[name]), backend="triton")
    ids = torch.randint(5, 199, (1, 70 if setup.small else 3001), generator=torch.Generator().manual_seed(1))
    scores = []
    for backend in ("triton", "blocked"):
        engine.backend = backend
        prefill = engine.prefill(ids.to(setup.device), [H2O()])
        scores.append(torch.stack(prefill.observer.scores[H2O()]))
    half = scores[0].shape[-1] // 2
    kept = [torch.zeros_like(score).scatter_(-1, score.topk(half, -1).indices, 1) for score in scores]
    overlap = ((kept[0] * kept[1]).sum() / kept[0].sum()).item()
    off = ((scores[0] - scores[1]).abs() / scores[1].abs().clamp(min=1e-3)).max().item()
    # bfloat16 rounds the blocked path's weights; float32 differs by the order of its sums
    passed = overlap > (0.95 if name == "bfloat16" else 0.999)
    return {"dtype": name, "score_error": off, "overlap": overlap, "passed": passed}


def correct(setup, result):
    """Kernels against float64, the flash forward's LSE, run-to-run equality, and the engine against itself."""
    dims = (64, 128) if setup.quick else (64, 80, 96, 128, 256)
    cases = [(name, dim, setup.device.type) for name in DTYPES for dim in dims]
    cases = (
        [(name, dim, setup.device.type) for name, dim in zip(DTYPES, (64, 80, 96), strict=True)]
        if setup.small
        else cases
    )
    if setup.small:
        result["kernels"] = [kernel_errors(*case) for case in cases]
        result["rules"] = [rule_errors(*case) for case in cases]
    else:  # compiling takes seconds per case, so several processes do it
        with ProcessPoolExecutor(8, multiprocessing.get_context("spawn")) as pool:
            result["kernels"] = list(pool.map(kernel_errors, *zip(*cases, strict=True)))
            result["rules"] = list(pool.map(rule_errors, *zip(*cases, strict=True)))
    result["engine"] = [engine_agreement(setup, name) for name in ("float32", "bfloat16")[: 1 if setup.small else 2]]
    result["passed"] = all(case["passed"] for case in result["kernels"] + result["rules"] + result["engine"])


def tune(setup, result):
    """The column kernel at several tiles, one layer of the longest prompt; what follows runs on the fastest."""
    config, length = setup.engine.config, setup.lengths[-1]
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    dim = config.hidden_size // heads
    query = torch.randn(1, heads, length, dim, dtype=setup.dtype, device=setup.device)
    key = torch.randn(1, kv_heads, length, dim, dtype=setup.dtype, device=setup.device)
    weights, scale = torch.ones(1, length, device=setup.device), dim**-0.5
    lse = interface.row_lse(query, key, scale)
    runs = {
        "flash": lambda: prompt_attention(query, key, key, scale),
        "lse": lambda: interface.row_lse(query, key, scale),
    }
    for tiles in COLUMN_TILES[: 2 if setup.small else None]:
        try:
            interface.column_mass(query, key, weights, lse, scale, tiles=tiles)
        except Exception as error:  # a tile that does not fit this GPU
            result.setdefault("unfit", {})[str(tiles)] = " ".join(str(error).split())[:200]
            continue
        runs[tiles] = lambda tiles=tiles: interface.column_mass(query, key, weights, lse, scale, tiles=tiles)
    spent = seconds_of(runs, setup.repeats, setup.device)
    result["ms"] = {str(name): round(1000 * value, 3) for name, value in spent.items()}
    best = min((name for name in spent if isinstance(name, tuple)), key=spent.get)
    result["tiles"] = best
    if setup.dtype != torch.float32:
        interface.COLUMN_TILES[max(128, 2 * dim)] = best


def prefill(setup, result):
    """Whole prefills beside the plain one, their peak memory, and eager attention where it runs."""
    engine = setup.engine
    for length in setup.lengths:
        ids, shape = setup.tokens(length), engine.shape(length)
        runs = {
            "plain": lambda ids=ids: engine.prefill(ids),
            "h2o": lambda ids=ids: engine.prefill(ids, [H2O()]),
            "window": lambda ids=ids: engine.prefill(ids, [LastRows()]),
        }
        for share in (76, 50):
            toy = PvC(min_context_length=8, solve=False)  # three layers reach no such size
            pruner = toy if setup.small else PvC().resolve(share * length // 100, shape)
            runs[f"pvc_{share}"] = lambda ids=ids, pruner=pruner: engine.prefill(ids, pruner=pruner)
        own = result.setdefault(str(length), {})
        spent = seconds_of(runs, setup.repeats, setup.device)
        own["s"] = {name: round(value, 4) for name, value in spent.items()}
        own["ratio"] = {name: round(value / spent["plain"], 4) for name, value in spent.items()}
        own["peak_gb"] = {}
        for name, run in runs.items():
            setup.forget()
            run()
            own["peak_gb"][name] = setup.peak_gb()
        own["eager"] = eager(setup, ids)


@torch.inference_mode()
def eager(setup, ids):
    """Time and memory of the unmodified model with eager attention, which peers need to observe."""
    model = setup.engine.model
    model.set_attn_implementation("eager")
    setup.forget()
    try:
        spent = seconds_of({"eager": lambda: model(input_ids=ids, use_cache=False, logits_to_keep=1)}, 1, setup.device)
        return {"s": round(spent["eager"], 4), "peak_gb": setup.peak_gb()}
    except torch.OutOfMemoryError as error:
        return {"out_of_memory": " ".join(str(error).split())[:120]}
    finally:
        model.set_attn_implementation("pvcbench")
        setup.forget()


@torch.inference_mode()
def decode(setup, result):
    """A step of static decoding against its floor: weights and filled cache once through memory, at copy speed."""
    from pvcbench.engine.static_decode import StaticDecoder

    engine, length, steps = setup.engine, setup.lengths[0], 1 if setup.small else 16
    if setup.bandwidth is None:
        copy(setup, {})
    done = engine.prefill(setup.tokens(length), [H2O()])
    model = engine.model
    weights = sum(part.nbytes for part in model.parameters()) - model.get_input_embeddings().weight.nbytes
    for rows in (2,) if setup.small else (1, 32):
        for share in (1.0, 0.25):
            cell = Cell("full", Method(), None, everything=True)
            cell = cell if share == 1.0 else Cell(str(share), H2O(), int(share * length))
            setup.forget()
            groups = engine.fork(done, [cell] * rows, 4 * steps + 8)
            decoder = StaticDecoder(engine.call, groups, capture=setup.cuda, backend="triton")
            ids = torch.full((rows, 1), 7, device=setup.device)

            def run(decoder=decoder, ids=ids):
                for _ in range(steps):
                    decoder.step(ids)

            spent = seconds_of({"step": run}, setup.repeats, setup.device)["step"] / steps
            held = sum(
                layer.filled * rows * layer.keys.shape[1] * 2 * layer.keys.shape[3] for layer in groups[0].layers
            )
            floor = (weights + held * groups[0].layers[0].keys.element_size()) / setup.bandwidth
            result[f"rows_{rows}_share_{share}"] = {
                "tokens": length,
                "step_ms": round(1000 * spent, 4),
                "floor_ms": round(1000 * floor, 4),
                "ratio": round(spent / floor, 3),
                "peak_gb": setup.peak_gb(),
            }
            del decoder, groups, run


def long(setup, result):
    """One prefill of the longest context, plain and observed whole: time and peak memory."""
    ids = setup.tokens(setup.long)
    result["tokens"] = setup.long
    for name, methods in (("h2o", [H2O()]), ("plain", [])):
        setup.forget()
        result[name] = {"s": round(setup.engine.prefill(ids, methods).seconds, 3), "peak_gb": setup.peak_gb()}


SECTIONS = {"copy": copy, "correct": correct, "methods": gpu_agreement.every_method}
SECTIONS |= {"families": gpu_agreement.every_family, "protocols": gpu_agreement.every_protocol}
SECTIONS |= {section.__name__: section for section in (tune, prefill, decode, long)}


# ---------------------------------------------------------------------------------------------- the check


def attempt(section, setup, result, seconds):
    """Runs a section for some seconds at most; what goes wrong is written beside what it had found."""

    def stop(*_):
        raise TimeoutError(f"stopped after {seconds:.0f} s")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1))
    started = time.monotonic()
    try:
        section(setup, result)
    except Exception as error:
        result["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    result["section_s"] = round(time.monotonic() - started, 1)
    setup.forget()


def judged(result, longest):
    """Each target with what was measured and whether it is met; None where nothing was."""
    ratios = result.get("prefill", {}).get(str(longest), {}).get("ratio", {})
    values = {f"{name}_prefill_ratio": value for name, value in ratios.items()}
    values["long_peak_gb"] = result.get("long", {}).get("h2o", {}).get("peak_gb")
    return {
        name: {"value": values.get(name), "target": most, "met": values[name] <= most if values.get(name) else None}
        for name, most in TARGETS.items()
    }


def main():
    """Checks, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=None)
    parser.add_argument("--quick", action="store_true", help="in 90 seconds: what is right, and prefills of one length")
    parser.add_argument("--small", action="store_true", help="toy sizes, on a CPU too")
    parser.add_argument("--out", type=Path, default=None, help="also write the JSON document to this file")
    options = parser.parse_args()
    if not options.small and not torch.cuda.is_available():
        print("gpu_check needs a GPU; --small runs it at toy size on a CPU", file=sys.stderr)
        sys.exit(2)
    chosen = options.only or (QUICK_SECTIONS if options.quick else list(SECTIONS))
    setup, result = Setup(options.small, options.quick), {"small": options.small, "quick": options.quick}
    end = time.monotonic() + (QUICK if options.quick else TOTAL)
    for name, section in SECTIONS.items():
        if name in chosen:
            own = result.setdefault(name, {})
            attempt(section, setup, own, min(SECONDS[name], end - time.monotonic()))
            print(name, json.dumps(own), file=sys.stderr, flush=True)
    result["targets"] = judged(result, setup.lengths[-1])
    bench_document.finish(result, options.out)
    failed = [name for name in chosen if "error" in result[name] or not result[name].get("passed", True)]
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
