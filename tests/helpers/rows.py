"""Made-up rows of runs, shaped like real ones: a needle run of five methods at some budgets, one of perplexity."""

import json
import zlib

import numpy as np
import pandas as pd
import yaml

from pvcbench.runs.run_id import run_id
from pvcbench.stats.failures import typed

LAYERS, BYTES = 30, 23040  # of the cache per entry
BUDGETS = (0.05, 0.1, 0.25, 0.4, 0.55, 0.75)
REACH = 0.38
# an output that would be markup where a page let it
EVIL = "</script><script>window.owned=1</script><!--<script> & \u2028\u2029 <img src=x onerror=owned=1>"
PROTOCOL = {"query_aware": True, "decode": "grow", "refeed_last": False, "first_token_uncompressed": True}
METHODS = {"full": 1.0, "pvc": 0.9, "h2o": 0.75, "streaming_llm": 0.3, "random": 0.1}


def survival(method, budget, depth, rng):
    """The share of the needle each layer keeps: late depths and large budgets keep more."""
    if method == "full":
        return [1.0] * LAYERS
    if method == "streaming_llm":
        return [float(depth / 100 > 1 - budget)] * LAYERS
    mean = budget if method == "random" else min(1.0, METHODS[method] * budget**0.4)
    slope = np.linspace(0.1, -0.1, LAYERS) if method == "pvc" else np.zeros(LAYERS)
    shares = np.clip(mean + slope + rng.normal(0, 0.15, LAYERS) + rng.normal(0, 0.1), 0, 1)
    return [round(float(share), 3) for share in shares]


def row(method, budget, index, length, depth):
    """One row; PvC below its reach is an error row."""
    rng = np.random.default_rng([zlib.crc32(method.encode()), round(1000 * budget), index])
    full = method == "full"
    made = {
        "task": "needle",
        "sample": f"0-{index}",
        "sample_info": {"length": length, "depth": depth, "real_depth": depth * 0.97, "value": "word"},
        "cluster": f"0-{index}",
        "stratum": "",
        "prompt_sha256": f"{index:064x}",
        "protocol": PROTOCOL,
        "method": method,
        "budget": repr(budget),
        "reference": full,
        "budget_entries": None if full else int(budget * length),
        "prompt_tokens": length - index % 3,
        "question_tokens": 20,
        "evicted_layers": list(range(LAYERS)),
        "answers": ["river"],
    }
    if method == "pvc" and budget < REACH:
        empty = ("kept_entries", "kept_fraction", "kv_bytes", "state_bytes", "score", "output", "prefill_s")
        made |= dict.fromkeys(empty) | {"spans_kept": {}, "metrics": {}, "decode_s": None, "peak_bytes": None}
        return made | {"error": f"below PvC's reach of {REACH:.1%}"}
    kept = 1.0 if full else int(budget * length) / length + 0.003 * (method == "pvc")
    shares = survival(method, budget, depth, rng)
    score = float(rng.random() < (0.97 if full else min(0.97, float(np.mean(shares)) ** 2)))
    made |= {"kept_entries": kept * length, "kept_fraction": kept, "kv_bytes": round(kept * length) * BYTES}
    made |= {"state_bytes": 0, "spans_kept": {"needle": shares}, "score": score, "metrics": {"accuracy": score}}
    made |= {"output": "river" if score else "I do not know", "prefill_s": 4.0, "decode_s": None}
    return made | {"peak_bytes": None, "error": None}


def needle_rows(lengths=(1024,), depths=(0.0, 25.0, 50.0, 75.0, 100.0), repeats=6, methods=METHODS, budgets=BUDGETS):
    """The rows of a whole run as dictionaries."""
    rows = []
    for index in range(repeats * len(lengths) * len(depths)):
        cell = index % (len(lengths) * len(depths))
        depth, length = depths[cell % len(depths)], lengths[cell // len(depths)]
        for method in methods:
            rows += [row(method, budget, index, length, depth) for budget in ((1.0,) if method == "full" else budgets)]
    return rows


def perplexity_rows():
    """Rows of a continuation run: 12 documents, 64 scored tokens, h2o worse than full by 0.1 to 0.3 nats."""
    found = []
    for number in range(12):
        rng = np.random.default_rng(number)
        nll = rng.gamma(2, 1.5, 64)
        for method, budget, more in (("full", "1.0", 0), ("h2o", "0.25", 0.3), ("h2o", "0.5", 0.1)):
            own = (nll + more + (method == "h2o") * rng.normal(0, 0.05, 64)).round(4).tolist()
            kept = float(budget)
            made = {"task": "perplexity", "sample": f"doc{number}#0", "sample_info": {"bytes": 300, "scored": 64}}
            made |= {"cluster": f"doc{number}", "stratum": "", "prompt_sha256": f"{number:064x}", "method": method}
            made |= {"budget": budget, "reference": method == "full", "prompt_tokens": 577, "question_tokens": 65}
            made |= {"protocol": {"name": "continuation", "decode": "grow", "query_aware": None}, "spans_kept": {}}
            made |= {"budget_entries": None if method == "full" else int(512 * kept), "kept_entries": 512 * kept}
            made |= {"kept_fraction": kept, "kv_bytes": int(512 * kept) * 1000, "score": -float(np.mean(own))}
            made |= {"metrics": {"perplexity": float(np.exp(np.mean(own)))}, "output": None, "answers": []}
            found.append(made | {"prefill_s": 1.0, "decode_s": None, "error": None, "token_nll": own})
    return found


def table(rows):
    """The rows as `load_table` returns them."""
    frame = pd.DataFrame(rows)
    frame.insert(0, "run", "0123456789ab")
    frame.insert(1, "experiment", "test")
    frame.insert(2, "model", "SmolLM2-135M-Instruct")
    frame.insert(3, "seed", 0)
    return typed(frame.assign(folder="test"))


def write_run(folder, rows, identity=None, config=None):
    """Writes a run folder with these rows, as the runner leaves it; returns the run's id."""
    folder.mkdir(parents=True)
    methods = {row["method"]: {} for row in rows if row["method"] is not None}
    identity = identity or {"model": {"name": "SmolLM2-135M-Instruct"}, "seed": 0, "methods": methods}
    stored = {"run": run_id(identity), "identity": identity, "config": config or {}}
    (folder / "config.yaml").write_text(yaml.safe_dump(stored), encoding="utf-8")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return stored["run"]
