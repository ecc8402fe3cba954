"""A prompt of latent attention: computed over expanded keys and values, as the engine does, and over the latents.

    python scripts/bench_latents.py --lengths 512 1024 2048

Two layers whose heads are as wide as DeepSeek-V3's (keys 192, values 128, latents 512 + 64), with fewer heads and
random weights in float32. The unmodified model computes the same prompt beside them (`model`). Times are medians of CPU
seconds on one thread, taken in turn after one turn that does not count; `ratio` is latents over expanded. The last line
is one JSON document.
"""

import argparse
import os
import statistics
import sys
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from methods.h2o import H2O
from methods.snapkv import SnapKV
from pvcbench.costs import bench_document
from pvcbench.engine import prefill
from pvcbench.engine.cache import AttendingCache
from pvcbench.engine.engine import Engine

FORMS = {"expanded": prefill.PrefillCache.attend_to_latents, "latents": AttendingCache.attend_to_latents}
METHODS = {"plain": [], "snapkv": [SnapKV()], "h2o": [H2O()]}
WIDTHS = {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "kv_lora_rank": 512, "q_lora_rank": 256}
SIZES = {"hidden_size": 512, "intermediate_size": 512, "num_hidden_layers": 2, "first_k_dense_replace": 2}


def model_of(heads: int):
    """A model with DeepSeek-V3's attention and little else."""
    counts = {"num_attention_heads": heads, "num_key_value_heads": heads, "vocab_size": 199}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("deepseek_v3", **WIDTHS, **SIZES, **counts)).eval()


def seconds(run) -> float:
    """CPU seconds of one call."""
    started = time.process_time()
    with torch.inference_mode():
        run()
    return time.process_time() - started


def measured(runs: dict, repeats: int) -> dict[str, float]:
    """Median seconds of each, in turn."""
    spent = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            took = seconds(run)
            spent[name] += [took] if turn else []
    return {name: statistics.median(times) for name, times in spent.items()}


def compared(engine, plain, ids, methods, repeats: int) -> dict[str, float]:
    """Seconds of one prompt in each form, and by the unmodified model where nothing is scored."""

    def in_form(form):
        prefill.PrefillCache.attend_to_latents = FORMS[form]
        engine.prefill(ids, methods)

    runs = {form: partial(in_form, form) for form in FORMS}
    if not methods:
        runs["model"] = partial(plain, input_ids=ids, use_cache=True, logits_to_keep=1)
    taken = measured(runs, repeats)
    ratio = round(taken["latents"] / taken["expanded"], 2)
    return {name: round(value, 4) for name, value in taken.items()} | {"ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    engine, plain, found = Engine(model_of(options.heads)), model_of(options.heads), {}
    for length in options.lengths:
        ids = torch.randint(1, 199, (1, length), generator=torch.Generator().manual_seed(1))
        for name, methods in METHODS.items():
            found[f"{name} {length}"] = compared(engine, plain, ids, methods, options.repeats)
            print(f"{name} {length}: {found[f'{name} {length}']}", file=sys.stderr)
    bench_document.finish({"heads": options.heads, "repeats": options.repeats, "cpu_seconds": found}, options.out)


if __name__ == "__main__":
    main()
