"""Writes docs/reference/kvpress_presses.md: what each press of kvpress gives under `method=kvpress`.

    python scripts/press_table.py            # writes the page; a test compares
    python scripts/press_table.py --check    # says whether the page is current, and exits with 1 if not

Its numbers are those of results/bench/crosscheck_kvpress_presses.json, which `scripts/crosscheck_kvpress.py --presses`
measures beside kvpress' own run on the embedded model.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.written_page import ROOT, program, reference, table

PAGE = reference("kvpress_presses")
MEASURED = ROOT / "results" / "bench" / "crosscheck_kvpress_presses.json"
HEAD = """# Presses of kvpress under method=kvpress

This page is written by `scripts/press_table.py`. The [guide](../guide/kvpress_presses.md) says how to run a press.

Each press below ran twice on the embedded model, unchanged: in kvpress {version} with transformers {theirs}, and under
`method=kvpress` with transformers {ours}. The overlap is the share of the entries that kvpress keeps which pvcbench
keeps too, mean over KV heads and layers, at {settings}; 1.000 is the same set. Where the least layer is a little below
1, entries of nearly equal score have changed places: the two sides sum attention in another order. What is drawn at
random was drawn from the same seeds on both sides. "But for ties" counts an entry as kept that scores as much as the
worst one kept: no score says which of them stay. "Chosen by" says whether the press gives its scores to pvcbench's
evictor or runs its own hook, and whether its options fix its size.
"""
REFUSED = """## Not supported, and why

A run that names one of these stops with the reason before a model is loaded.
"""
WITHOUT = """## Not compared

These need files of a hub, or a package that was not installed where the others were compared.
"""
UNTRIED = ("cannot be imported", "reads files")


def options_of(line: Mapping) -> str:
    """The options of a press as its settings are written."""
    text = json.dumps(line["options"]).replace('"', "")
    shown = text if len(text) <= 90 else f"{text[:87]}..."
    return f"`{shown}`" if line["options"] else ""


def compared(settings: list) -> list[list[str]]:
    """A row for each press that ran on both sides."""
    rows = []
    for line in settings[0]["presses"]:
        known = [one for setting in settings for one in setting["presses"] if one["press"] == line["press"]]
        ran = [one for one in known if "mean" in one]
        if ran:
            means, least = [one["mean"] for one in ran], min(one["least"] for one in ran)
            ends = dict.fromkeys((f"{min(means):.3f}", f"{max(means):.3f}"))
            short = [one["reason"] for one in known if one["reason"]]
            note = line.get("why") or (f"not at every setting: {short[0]}" if short else "")
            untied = min((one["mean_but_for_ties"] for one in ran if "mean_but_for_ties" in one), default=None)
            shares = [" to ".join(ends), f"{least:.3f}", "" if untied is None else f"{untied:.3f}"]
            rows.append([line["press"], options_of(line), ran[0]["by"], *shares, note])
    return rows


def refused(settings: list) -> list[list[str]]:
    """A row for each press that ran at no setting, with the reason."""
    rows = []
    for line in settings[0]["presses"]:
        known = [one for setting in settings for one in setting["presses"] if one["press"] == line["press"]]
        if not any("mean" in one for one in known):
            rows.append([line["press"], line["reason"]])
    return rows


def untried(reason: str) -> bool:
    """Whether a reason says that something was missing, not that a press cannot run."""
    return any(words in reason for words in UNTRIED)


def page() -> str:
    """The whole page."""
    measured = json.loads(MEASURED.read_text(encoding="utf-8"))
    settings = measured["settings"]
    cases = [f"{one['tokens']:,} tokens with {one['ratio']:.0%} removed" for one in settings]
    packages = measured["peer"]["packages"]
    head = HEAD.format(
        version=packages["kvpress"],
        theirs=packages["transformers"],
        ours=measured["machine"]["packages"]["transformers"],
        settings=" and ".join(cases),
    )
    names = ["press", "options", "chosen by", "overlap", "least layer", "but for ties", "why they differ"]
    parts, others = [head.rstrip(), table(names, compared(settings))], refused(settings)
    for text, missing in ((REFUSED, False), (WITHOUT, True)):
        own = [[name, reason] for name, reason in others if untried(reason) == missing]
        parts += [text.rstrip(), table(["press", "reason"], own)] if own else []
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.exit(program(__doc__, PAGE, page))
