"""What the documents say of the committed benchmarks, in numbers from results/bench."""

import json
from pathlib import Path

from scripts.numbers_words import paragraph
from scripts.written_page import ROOT


def bench(name: str, results: Path) -> dict:
    """A file of results/bench."""
    return json.loads((results / "bench" / f"{name}.json").read_text(encoding="utf-8"))


def speed(results: Path = ROOT / "results") -> str:
    """What one prefill for a whole curve saves, and what observing attention costs."""
    curve, scoring = bench("curve", results), bench("scoring", results)
    last = scoring["lengths"][-1]
    return paragraph(
        f"A curve of {curve['cells']} cells at {curve['tokens']:,} tokens takes {curve['curve_over_point']:.1f} times "
        f"as long as a single point. kvpress {curve['peer']['packages']['kvpress']}, which runs point by point, takes "
        f"{curve['peer_over_ours']:.1f} times as long as pvcbench for the same curve "
        f"({curve['peer_over_ours_without_observed']:.1f} times without its ObservedAttention). Summing all attention, "
        f"as H2O needs, makes a prefill of {last:,} tokens {scoring['h2o_ratio'][-1]:.1f} times as long; kvpress' "
        f"ObservedAttention makes it {scoring['peer_ratio'][-1]:.1f} times as long. All of this was measured on "
        f"{scoring['threads']} threads of a CPU with a model of 135M parameters."
    )
