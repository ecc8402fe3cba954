"""What the documents say of the committed benchmarks, in numbers from results/bench."""

import json
from pathlib import Path

from scripts.numbers_words import joined, paragraph, span
from scripts.written_page import ROOT, table


def bench(name: str, results: Path) -> dict:
    """A file of results/bench."""
    return json.loads((results / "bench" / f"{name}.json").read_text(encoding="utf-8"))


def speed(results: Path = ROOT / "results") -> str:
    """What one prefill for a whole curve saves, and what observing attention costs."""
    curves = [bench(name, results) for name in ("curve_1024", "curve_2048", "curve")]
    scoring, last = bench("scoring", results), bench("scoring", results)["lengths"][-1]
    points, whole, fewer = (
        span([curve[key] for curve in curves], 1)
        for key in ("curve_over_point", "peer_over_ours", "peer_over_ours_without_observed")
    )
    lengths = joined(f"{curve['tokens']:,}" for curve in curves)
    return paragraph(
        f"A curve of {curves[0]['cells']} cells takes {points} times as long as a single point, at {lengths} tokens. "
        f"kvpress {curves[0]['peer']['packages']['kvpress']}, which runs point by point, takes {whole} times as long "
        f"as pvcbench for the same curve ({fewer} times without its ObservedAttention). Summing all attention, as H2O "
        f"needs, makes a prefill of {last:,} tokens {scoring['h2o_ratio'][-1]:.2f} times as long; kvpress' "
        f"ObservedAttention makes it {scoring['peer_ratio'][-1]:.2f} times as long. All of this was measured on one or "
        "two threads of a CPU with a model of 135M parameters."
    )


def drafts(results: Path = ROOT / "results") -> str:
    """What decoding by drafts could save at best, from the parts that were timed on the real caches."""
    found = [bench(name, results) for name in ("drafts", "drafts_4096", "drafts_long")]
    rows = []
    for one in found:
        prompt = f"{one['tokens']:,}" + (f", answers of {one['max_new_tokens']} tokens" if one["endless"] else "")
        for draft in one["drafts"]:
            ratios = (f"{draft[name]:.2f}" for name in ("best_over_plain", "agreed_over_plain"))
            rows.append([prompt, str(one["samples"]), str(draft["words"]), f"{draft['agreed_words']:.1f}", *ratios])
    head = [
        "prompt",
        "samples",
        "words drafted",
        "words agreed",
        "best over plain",
        "were all agreed, over these words",
    ]
    one, longest = found[0], found[0]["drafts"][-1]
    steps, fed = one["max_new_tokens"] - 1, longest["words"] - 1
    joint, alone = 1000 * one["plain_s"] / (one["cells"] * steps), 1000 * longest["lead_s"] / fed
    read = 1000 * longest["pass_s"] / ((one["cells"] - 1) * fed)
    differ = sum(draft["rows_that_differ"] for one in found for draft in one["drafts"])
    said = (
        f"At {one['tokens']:,} tokens a token costs {joint:.1f} ms in a joint step of {one['cells']} cells, "
        f"{read:.1f} ms in the largest pass and {alone:.0f} ms in steps of the full cache alone. "
        f"In {differ} rows a pass chose other words than steps."
    )
    return f"{table(head, rows)}\n\n{paragraph(said)}"
