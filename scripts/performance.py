"""Rewrites docs/results/performance.md's tables and figures from results/bench alone: python scripts/performance.py

Needs the JSON files of results/bench named below, which the benchmark scripts write by `--out`,
and the rows of results/pyramidinfer_throughput. The same files give the same bytes.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pandas as pd
from matplotlib.figure import Figure

from pvcbench.analyses.throughput import tables
from pvcbench.costs.model import ARCHITECTURES
from pvcbench.costs.scale_page import fill, table
from pvcbench.errors import UserError
from pvcbench.plots.canvas import head
from pvcbench.plots.drawn_from import fingerprint
from pvcbench.plots.run_figures import save
from pvcbench.plots.style import BLACK, BLUE, DASHED, GREEN, GREY, ORANGE, RED
from pvcbench.runs.rows import load_table
from scripts.numbers_words import paragraph, span

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("scoring", "curve", "decode", "methods")  # with a picture each
QUESTIONS = ("questions", "questions_pairs", "questions_2048", "questions_4096")
LENGTHS = ("curve_1024", "curve_2048", "curve")  # whole curves by the prompt's length; the last one has the picture
TABLES = (*LENGTHS[:-1], "startup", *QUESTIONS)
WAITS = {  # commands of the benchmark of the command line, in words
    "help": "`pvcbench --help`",
    "list": "`pvcbench list`",
    "again": "a finished run, asked for again",
    "figures": "the figures and tables of a run",
}
CURVES = (("seconds", "peer_over_ours"), ("seconds_without_observed", "peer_over_ours_without_observed"))
SIDES = {"ours": ("pvcbench, one shared prefill", BLUE, -0.2), "peer": ("kvpress, point by point", ORANGE, 0.2)}
COLUMNS = {  # of the scoring benchmark: key, words, colour, marker
    "h2o": ("h2o_ratio", "H2O: every row", BLUE, "s"),
    "window": ("window_ratio", "a window of 64 rows", GREEN, "^"),
    "pvc": ("pvc_prefill_ratio", "PvC at 50%, pruned", RED, "o"),
    "peer": ("peer_ratio", "kvpress: ObservedAttention", BLACK, "X"),
}


def ranged(value, ends) -> str:
    """A ratio with its smallest and largest, or a dash where there is none."""
    return "-" if value is None else f"{value:.2f} [{ends[0]:.2f}, {ends[1]:.2f}]"


def machine(found: dict) -> str:
    """What the numbers were measured on, a line per benchmark."""
    rows = []
    for name, one in found.items():
        own = one["machine"]
        where = f"{own['processor']}, {one.get('threads', own['threads'])} threads"
        packages = f"torch {own['packages']['torch']}, transformers {own['packages']['transformers']}"
        rows.append([f"`{name}.json`", f"`{one['command']}`", where, packages, own["started"][:10]])
    return table(["file in results/bench", "command", "machine", "packages", "day"], rows)


def scoring(one: dict) -> str:
    """Prefill ratios and added memory at every length."""
    head = [
        "tokens",
        "plain, s",
        *(words for _, words, _, _ in COLUMNS.values()),
        "MiB added, H2O",
        "MiB added, kvpress",
    ]
    rows = []
    for at, length in enumerate(one["lengths"]):
        row = [f"{length:,}", f"{one['plain_s'][at]:.2f}"]
        row += [ranged(one[key][at], one[f"{key}_range"][at]) for key, *_ in COLUMNS.values()]
        added = one["h2o_added_mib"][at], one["peer_added_mib"][at]
        rows.append([*row, *("-" if mib is None else f"{mib:,.1f}" for mib in added)])
    notes = sorted({note for note in one["peer_note"] if note})
    return "\n\n".join([table(head, rows), *(f"kvpress: {note}." for note in notes), paragraph(targets(one))])


def targets(one: dict) -> str:
    """Which targets the scoring benchmark meets, and what its longest prompt says."""
    said = []
    for key, words in (("h2o", "H2O"), ("window", "The window")):
        target = one[f"{key}_target"]
        low, high = one[f"{key}_ratio_range"][one["lengths"].index(target["at"])]
        verdict = "meets" if target["met"] else "misses"
        said.append(
            f"{words} {verdict} its target of {target['at_most']} at {target['at']:,} tokens with {target['ratio']:.2f}"
            f" ({low:.2f} to {high:.2f} in the repeats)."
        )
    last = f"{one['lengths'][-1]:,} tokens (repeats: {one['repeats'][-1]})"
    said.append(
        f"At {last} kvpress' ObservedAttention makes its prefill {one['peer_ratio'][-1]:.2f} times as long and adds "
        f"{one['peer_added_mib'][-1]:,.0f} MiB; ours makes it {one['h2o_ratio'][-1]:.2f} times as long and adds "
        f"{one['h2o_added_mib'][-1]:,.0f} MiB."
    )
    return " ".join(said)


def scoring_figure(one: dict) -> Figure:
    """What scoring makes of a plain prefill, by length."""
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    axes = figure.subplots()
    axes.axhline(1, color=GREY, linewidth=1, label="plain prefill, the full cache's")
    for key, words, colour, marker in COLUMNS.values():
        known = [(n, r, *ends) for n, r, ends in zip(one["lengths"], one[key], one[f"{key}_range"], strict=True) if r]
        x, middle, low, high = zip(*known, strict=True)
        bars = [
            [m - end for m, end in zip(middle, low, strict=True)],
            [end - m for m, end in zip(middle, high, strict=True)],
        ]
        axes.errorbar(x, middle, yerr=bars, color=colour, marker=marker, markersize=5, capsize=2, label=words)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="prompt, tokens",
        ylabel="prefill time / that of a plain prefill\n(by the same program)",
    )
    axes.set_xticks(one["lengths"], [f"{length:,}" for length in one["lengths"]])
    axes.minorticks_off()
    ticks = [0.5, 1, 2, 4, 8]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    repeats = ", ".join(map(str, one["repeats"]))
    ends = f"medians, smallest and largest of {repeats} repeats, by length"
    head(figure, f"SmolLM2-135M, {one['machine']['processor']}; {ends}", axes.get_legend_handles_labels()[0])
    return figure


def curve(several: Sequence[dict]) -> str:
    """Whole curves against one point of ours and against the peer's points, with all methods and without H2O."""
    head = ["tokens", "samples", "curve", "ours, s", "of a point", "kvpress, s", "kvpress / ours", "target"]
    rows, told = [], []
    for one in several:
        counts = len(one["peer_seconds"]["each"])
        for (name, key), words in zip(CURVES, ("3 methods, 25 cells", "without H2O, 17 cells"), strict=True):
            seconds = [f"{one[f'{side}_{name}']['median']:.1f}" for side in ("ours", "peer")]
            whole = f"{one['curve_over_point']:.2f}" if name == "seconds" else ""
            aim = one[f"{key}_target"]
            target = f"at least {aim['at_least']:g}: {'met' if aim['met'] else 'missed'}"
            row = [f"{one['tokens']:,}", str(counts), words, seconds[0], whole, seconds[1]]
            rows.append([*row, ranged(one[key], one[f"{key}_range"]), target])
        answers = one["answers"].items()
        right = [f"{name} {own['ours']} and {own['peer']} of {own['of']}" for name, own in answers]
        same = [f"{name} in {own['same_text']} of {own['of']}" for name, own in answers]
        told.append(
            f"Right answers at {one['tokens']:,} tokens, ours and kvpress': {'; '.join(right)}. "
            f"The texts are the same: {'; '.join(same)}. {kept(one['kept_entries_difference'])}"
        )
    return "\n\n".join([table(head, rows), *map(paragraph, told)])


def kept(difference: float) -> str:
    """Whether both sides kept equally many entries."""
    if not difference:
        return "Both sides keep equally many entries."
    return f"The numbers of entries that both sides keep differ by {difference:g} at most."


def startup(one: dict) -> str:
    """How long commands take that measure nothing, before and now."""
    if one["before"] is None:
        raise UserError("startup.json has no older checkout to compare with: measure it with --before")
    head = ["command", f"before ({one['before']}), s", "now, s", "now / before", "target, s"]
    rows = []
    for name, line in one["commands"].items():
        times = [f"{line[f'{side}_s']:.2f} [{line[f'{side}_s_range'][0]:.2f}, {line[f'{side}_s_range'][1]:.2f}]"
                 for side in ("before", "now")]  # fmt: skip
        rows.append([WAITS[name], *times, f"{line['now_over_before']:.2f}", f"{line['target_s']:g}"])
    return table(head, rows)


def questions(several: Sequence[dict]) -> str:
    """Questions on one context together, against one at a time and against kvpress' own grouping."""
    head = ["contexts of", "tokens", "contexts", "questions on each", "cells"]
    head += ["together, s", "one at a time, s", "ratio", "rows alike"]
    rows, beside = [], []
    for one in several:
        row = [one["task"], f"{one['tokens']:,}", *(str(one[key]) for key in ("contexts", "questions", "cells"))]
        row += [f"{one['together_s']:.1f}", f"{one['alone_s']:.1f}", f"{one['together_over_alone']:.2f}"]
        rows.append([*row, f"{one['rows'] - one['rows_that_differ']:,} of {one['rows']:,}"])
        if "peer" in one:
            peer, count = one["peer"], f"{one['peer']['answers']:,}"
            row = [one["task"], f"{one['tokens']:,}", str(peer["contexts"]), f"{peer['ours_s']:.1f}"]
            row += [f"{peer['peer_s']:.1f}", f"{peer['peer_over_ours']:.1f}", f"{peer['same_answers']:,} of {count}"]
            beside.append([*row, *(f"{right:,} of {count}" for right in peer["right"].values())])
    text = (
        "kvpress' own grouping compresses a context once for each cell and answers its questions one after the other. "
        "On the first contexts, the same tokens and methods (StreamingLLM at original positions, SnapKV at kvpress' "
        "settings):"
    )
    names = ["contexts of", "tokens", "contexts", "ours, s", "kvpress, s", "ratio", "same answers"]
    return f"{table(head, rows)}\n\n{paragraph(text)}\n\n{table([*names, 'ours right', 'kvpress right'], beside)}"


def methods(one: dict) -> str:
    """What a sample costs by the number of methods, in one run and in a run for each."""
    head = ["methods", "cells", "one run, s", "a run for each method, s", "ratio"]
    rows = []
    for at, count in enumerate(one["counts"]):
        row = [str(count), str(one["cells"][at])]
        row += [ranged(one[key][at], one[f"{key}_range"][at]) for key in ("together_s", "alone_s")]
        rows.append([*row, f"{one['together_over_alone'][at]:.2f}"])
    first, last = one["together_s"][0], one["together_s"][-1]
    more = (last - first) / (one["counts"][-1] - one["counts"][0])
    text = (
        f"With {one['counts'][-1]} methods a sample costs {last / first:.1f} times what it costs with "
        f"{one['counts'][0]}: {more:.1f} s more for each method and its {len(one['budgets'])} sizes."
    )
    return f"{table(head, rows)}\n\n{paragraph(text)}"


def methods_figure(one: dict) -> Figure:
    """Processor seconds of a sample by the number of methods."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    lines = (("alone_s", "a run for each method", ORANGE, "o"), ("together_s", "one run of all methods", BLUE, "s"))
    for key, words, colour, marker in lines:
        middle, ends = one[key], one[f"{key}_range"]
        bars = [
            [m - low for m, (low, _) in zip(middle, ends, strict=True)],
            [high - m for m, (_, high) in zip(middle, ends, strict=True)],
        ]
        axes.errorbar(
            one["counts"], middle, yerr=bars, color=colour, marker=marker, markersize=5, capsize=2, label=words
        )
    axes.set(xlabel=f"methods, each at {len(one['budgets'])} sizes", ylabel="processor seconds per sample")
    axes.set_xticks(one["counts"])
    axes.set_ylim(bottom=0)
    title = f"needle, SmolLM2-135M, {one['tokens']:,} tokens; medians, smallest and largest of {one['samples']} samples"
    head(figure, title, axes.get_legend_handles_labels()[0])
    return figure


def curve_figure(one: dict) -> Figure:
    """Seconds of a sample's whole curve, ours and the peer's."""
    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    axes = figure.subplots()
    for at, (name, _) in enumerate(CURVES):
        for side, (words, colour, shift) in SIDES.items():
            own = one[f"{side}_{name}"]
            bars = [[own["median"] - own["smallest"]], [own["largest"] - own["median"]]]
            label = None if at else words
            axes.bar(at + shift, own["median"], 0.36, color=colour, yerr=bars, capsize=3, label=label)
            place = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center", "fontsize": 8}
            axes.annotate(f"{own['median']:.0f} s", (at + shift, own["median"]), **place)
    axes.set_xticks([0, 1], ["3 methods x 8 sizes and the full cache", "the same without H2O"])
    number = len(one["peer_seconds"]["each"])
    title = f"needle, SmolLM2-135M, {one['tokens']:,} tokens, {number} sample{'s' * (number > 1)}"
    axes.margins(y=0.15)
    axes.set_ylabel("seconds per sample, median (smallest to largest)")
    head(figure, title, axes.get_legend_handles_labels()[0])
    return figure


def decode(one: dict) -> str:
    """Steps against their floor."""
    head = ["batch", "cache", "steps of one shape", "step, ms", "floor, ms", "step / floor", "drift", "KV, MiB"]
    rows = [
        [str(cell["batch"]), cell["cell"], "yes" if cell["static"] else "no", f"{1e3 * cell['step_s']:.1f}",
         f"{1e3 * cell['floor_s']:.1f}", f"{cell['over_floor']:.2f}", f"{cell['drift']:.2f}", f"{cell['kv_mib']:.1f}"]
        for cell in one["cells"]
    ]  # fmt: skip
    text = f"Copy bandwidth {one['copy_gb_per_s']} GB/s, weights {one['weight_mib']} MiB."
    return f"{text}\n\n{table(head, rows)}\n\n{paragraph(steps(one))}"


def steps(one: dict) -> str:
    """How far steps are from their floor, and what steps of one shape cost beside ordinary ones."""
    cells = {(cell["batch"], cell["cell"], cell["static"]): cell for cell in one["cells"]}
    ratios = {
        key[:2]: cell["step_s"] / cells[(*key[:2], False)]["step_s"] for key, cell in cells.items() if cell["static"]
    }
    grown = [ratio for (_, name), ratio in ratios.items() if not name.endswith("hold")]
    held = [ratio for (_, name), ratio in ratios.items() if name == "h2o hold"]
    floors = [cell["over_floor"] for cell in one["cells"]]
    return (
        f"On two cores a step takes {span(floors, 1)} times its floor: arithmetic and small operations bind it, not "
        f"memory. Steps of one shape take {span(grown)} of an ordinary step while a cache grows, since a mask says "
        f"which slots are filled, and {span(held)} for an H2O cache that is held. The full cache runs through the same "
        "code."
    )


def decode_figure(one: dict) -> Figure:
    """A bar for every cache: its step over its floor."""
    batches = sorted({cell["batch"] for cell in one["cells"]})
    figure = Figure(figsize=(7.6, 3.9), layout="constrained")
    panels = figure.subplots(1, len(batches), squeeze=False, sharey=True)[0]
    for axes, batch in zip(panels, batches, strict=True):
        cells = [cell for cell in one["cells"] if cell["batch"] == batch]
        names = list(dict.fromkeys(cell["cell"] for cell in cells))
        for static, colour, shift in ((False, GREY, 0.2), (True, BLUE, -0.2)):
            own = [next(c["over_floor"] for c in cells if (c["cell"], c["static"]) == (name, static)) for name in names]
            label = "steps of one shape" if static else "ordinary steps"
            axes.barh([at + shift for at in range(len(names))], own, 0.36, color=colour, label=label)
        axes.axvline(1, color=BLACK, linestyle=DASHED, linewidth=1)
        axes.set_yticks(range(len(names)), names)
        axes.set(title=f"batch {batch}")
    panels[0].invert_yaxis()
    figure.supxlabel(
        "time of a decoding step / of reading weights and cache once (dashed: as fast as that)", fontsize=9
    )
    title = f"decoding after {one['tokens']:,} prompt tokens, {one['budget']} entries kept"
    title += "\ngrow: later tokens are all kept; hold: later tokens evict others"
    head(figure, title, panels[0].get_legend_handles_labels()[0])
    return figure


def bound(batch: int = 32, prompt: int = 512, new: int = 256, memory: float = 80e9) -> str:
    """What bytes allow in the paper's setting: a step's traffic at the mean cache, and batches that fit at the end."""
    model = ARCHITECTURES["Llama-2-13B"]
    entry = model.layers * model.entry_bytes(2)
    full = 2 * model.read_weights + batch * (prompt + new / 2) * entry
    rows = []
    for words, share in (("full cache", 1.0), ("published setting", 0.723), ("claimed", 0.454)):
        traffic = 2 * model.read_weights + batch * (share * prompt + new / 2) * entry
        fits = int((memory - 2 * model.parameters) / ((share * prompt + new) * entry))
        rows.append([words, f"{share:.1%}", f"{traffic / 2**30:.1f}", f"{full / traffic:.2f}", str(fits)])
    head = ["cache", "of the prompt kept", "a step reads, GiB", "faster than full at most", "batch that fits"]
    text = (
        f"So a cache of the claimed size makes a step at most {rows[2][3]} times as fast as a full cache that reads "
        f"memory as fast, and the size that the published settings give {rows[1][3]} times. The largest full batch "
        f"that fits is {rows[0][4]}."
    )
    return f"{table(head, rows)}\n\n{paragraph(text)}"


def throughput(rows: pd.DataFrame) -> str:
    """The summary of the committed throughput run."""
    found = tables.tables(rows)["summary"]
    head = [name.replace("_", " ") for name in found.columns]
    lines = [["" if pd.isna(value) else f"{value:.4g}" if isinstance(value, float) else str(value) for value in line]
             for line in found.itertuples(index=False)]  # fmt: skip
    own = found.set_index("method")
    first = own["ttft_s"]
    others = [f"`{name}` {ratio}" for name, ratio in own["paper_speedup"].items() if name not in ("full", "pvc")]
    text = (
        f"PvC's gain is the prefill: {first['pvc']:.1f} s to the first token against {first['full']:.1f} s. "
        "The paper's way of counting divides prompt tokens too. "
        f"By it PvC's speedup is {own['paper_speedup']['pvc']}; the others' are {', '.join(others)}."
    )
    return f"{table(head, lines)}\n\n{paragraph(text)}"


FIGURES = {"scoring": scoring_figure, "curve": curve_figure, "decode": decode_figure, "methods": methods_figure}


def draw(source: Path, folder: Path) -> list[Path]:
    """Draws what one file of results/bench shows into a folder and returns the paths."""
    found = json.loads(source.read_text(encoding="utf-8"))
    return save(lambda: [(source.stem, FIGURES[source.stem](found))], folder, fingerprint([found]), [source.name])


def main() -> int:
    """Rewrites tables and figures and prints their paths; 2 where a file is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--doc", type=Path, default=ROOT / "docs/results/performance.md")
    options = parser.parse_args()
    folder = options.results / "bench"
    try:
        found = {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in (*NAMES, *TABLES)}
        rows = load_table(options.results / "pyramidinfer_throughput")
        parts = {
            "machine": machine(found),
            "scoring": scoring(found["scoring"]),
            "curve": curve([found[name] for name in LENGTHS]),
        }
        parts |= {
            "methods": methods(found["methods"]),
            "startup": startup(found["startup"]),
            "questions": questions([found[name] for name in QUESTIONS]),
            "decode": decode(found["decode"]),
            "throughput": throughput(rows),
            "bound": bound(),
        }
        fill(options.doc, parts)
    except (OSError, UserError) as error:
        print(f"performance: {error}; the benchmark scripts write these files with --out", file=sys.stderr)
        return 2
    print(options.doc)
    for name in NAMES:
        for path in draw(folder / f"{name}.json", folder / "figures"):
            print(path)
    return 0


if __name__ == "__main__":
    from pvcbench.cli.exits import program

    sys.exit(program(main))
