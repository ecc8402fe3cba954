"""Fits the cost model to measured points, checks it on others, and writes docs/results/scale.md's tables and figures.

    python scripts/bench_costs.py --out results/bench/costs.json
    python scripts/scale.py

Everything is a function of the measured file, so a second run writes the same bytes. `--constants FILE`, a file of the
same form measured on a GPU, replaces the assumed constants of the GPU tables.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from methods.h2o import H2O
from methods.pvc import PvC
from methods.pvc_ladder import ladder
from pvcbench.costs import model as costs
from pvcbench.costs import sweep_cost
from pvcbench.costs.fitted import Measured, constants, every_layer
from pvcbench.costs.model import ARCHITECTURES, Architecture, Profile
from pvcbench.costs.scale_page import check_figure, fill, gib, length_figure, spell, table
from pvcbench.errors import OutOfReach, UserError
from pvcbench.plots.drawn_from import fingerprint
from pvcbench.plots.run_figures import save
from pvcbench.policy import Method, Shape
from scripts.bench_costs import Window
from scripts.numbers_words import span

ROOT = Path(__file__).resolve().parent.parent
LENGTHS = {"1k": 2**10, "4k": 2**12, "16k": 2**14, "64k": 2**16, "128k": 2**17, "1M": 2**20, "10M": 10 * 2**20}
WAYS = {"plain": "plain", "a window of 32 rows": "window", "every row": "observed", "PvC at 50%": "pvc"}
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)
SWEPT = {  # eight methods by what their prefill needs: PvC prunes, H2O observes every row, three a few, three none
    "PvC": PvC(),
    "H2O": H2O(),
    "SnapKV": Window(32),
    "PyramidKV": Window(32),
    "TOVA": Window(1),
    "StreamingLLM": Method(),
    "Knorm": Method(),
    "random": Method(),
}
FLOPS, BYTES = 989e12, 3.35e12  # an H100 SXM's published peaks: dense bfloat16 operations and bytes of HBM3, a second
ASSUMED = {  # assumed, not measured: shares of those peaks, a nanosecond per ranked entry, 60 microseconds per layer
    "linear_flop": 1 / (0.5 * FLOPS),
    "pair_flop": 1 / (0.35 * FLOPS),
    "observed_flop": 1 / (0.1 * FLOPS),
    "weight_byte": 1 / (0.6 * BYTES),
    "shared_byte": 0.0,
    "cache_byte": 1 / (0.6 * BYTES),
    "copied_byte": 2 / (0.6 * BYTES),
    "ranked_entry": 1e-9,
    "layer_call": 60e-6,
}
GPU_BLOCK, CPU_BLOCK = (2**26, 1024), (2**21, 64)  # the engine's attention weights at once, and rows at most


@cache
def profile_of(method: Method, shape: Shape) -> Profile:
    """By what the method declares; where it prunes, positions come from its ladder."""
    return Profile.of(method, shape, ladder(method, shape)[:-1] if method.prunes else None)


def profile_of_point(point: Mapping, shape: Shape) -> Profile:
    """What a measured point's prefill observes."""
    if point["method"] == "pvc":
        return profile_of(PvC(**point["ratios"], solve=False), shape)
    return profile_of({"observed": H2O(), "window": Window()}.get(point["method"], Method()), shape)


def settled(method: Method, share: float, shape: Shape) -> Method | None:
    """A method at a share of the cache, where it reaches it."""
    try:
        return method.resolve(int(share * shape.tokens), shape)
    except OutOfReach:
        return None


@cache
def reached(method: Method, layers: int) -> tuple[float, ...]:
    """The shares that a method reaches at 4,096 tokens, from the largest down."""
    found = []
    for share in sorted(SHARES, reverse=True):
        if settled(method, share, every_layer(4096, layers)) is None:
            break
        found.append(share)
    return tuple(found)


def cells_of(model: Architecture, tokens: int) -> list[sweep_cost.CellCost]:
    """Eight methods at eight budgets and the full cache, without what a method cannot reach."""
    shape = every_layer(tokens, model.layers)
    plans = [sweep_cost.CellCost.of("full", Method(), 1.0, shape)]
    for name, method in SWEPT.items():
        for share in reached(method, model.layers):
            found = settled(method, share, shape)
            reaching = profile_of(found, shape).reaching if found.prunes else None
            plans.append(sweep_cost.CellCost.of(name, found, share, shape, reaching))
    return plans


@cache
def methods_at(tokens: int, layers: int) -> dict[str, Method | None]:
    """The ways to prefill that are tabulated; None where PvC does not reach half of the cache."""
    pruner = settled(PvC(), 0.5, every_layer(tokens, layers))
    return {"plain": Method(), "window": Window(32), "observed": H2O(), "pvc": pruner}


def one_length(
    model: Architecture, tokens: int, rates: Mapping[str, float], element: int, block: tuple[int, int]
) -> dict[str, float | None]:
    """Seconds of prefills and steps, and bytes, at one length; None where PvC does not reach half of the cache."""
    shape = every_layer(tokens, model.layers)
    methods = methods_at(tokens, model.layers).items()
    profiles = {name: None if method is None else profile_of(method, shape) for name, method in methods}
    found = {
        name: None if profile is None else costs.seconds(costs.prefill(model, profile, element), rates)
        for name, profile in profiles.items()
    }
    for name, share in (("step", 1.0), ("step_tenth", 0.1)):
        found[name] = costs.seconds(costs.step(model, share * tokens * model.layers, 1, element), rates)
    found["cache"] = tokens * model.layers * model.entry_bytes(element)
    found["peak"] = costs.memory(model, profiles["plain"], element, scored=False, block=block).peak
    found["peak_observed"] = costs.memory(model, profiles["observed"], element, 1, block=block).peak
    return found


def scaled(models: Mapping[str, Architecture], lengths, rates, element: int, block) -> str:
    """The costs of every shape at every length."""
    head = ["shape", "tokens", "plain", "window", "every row", "PvC 50%", "step", "step at 10%"]
    rows = []
    for name, model in models.items():
        for label in lengths:
            one = one_length(model, LENGTHS[label], rates, element, block)
            row = [name, label, *("out of reach" if one[key] is None else spell(one[key]) for key in WAYS.values())]
            row += [spell(one[key]) for key in ("step", "step_tenth")]
            rows.append([*row, *(gib(one[key]) for key in ("cache", "peak", "peak_observed"))])
    return table([*head, "KV, GiB", "peak, GiB", "peak, every row, GiB"], rows)


def figures(measured: Measured, gpu: Measured | None, folder: Path, files: Sequence[Path]) -> list[Path]:
    """The two figures, drawn from these files: the check of the model, and what it says of longer prompts."""
    title = "One H100, constants assumed, not measured" if gpu is None else f"{gpu.about}, constants measured"
    rates = ASSUMED if gpu is None else gpu.constants
    points = [
        (point["kind"], role, *(point[key] for key in ("median", "least", "most")), measured.predicted(point))
        for role in ("fit", "check")
        for point in measured.timed(role)
    ]
    found = {
        name: [(tokens, one_length(model, tokens, rates, 2, GPU_BLOCK)) for tokens in LENGTHS.values()]
        for name, model in ARCHITECTURES.items()
    }
    lines = {way: [(n, one[key]) for n, one in found["Llama-3-8B"] if one[key]] for way, key in WAYS.items()}
    steps = {name: [(n, one["step"], one["step_tenth"]) for n, one in line] for name, line in found.items()}
    seen = f"{measured.about}: the cost model on\npoints it was fitted on (hollow) and on others (filled)"
    made = {"costs_check": (check_figure, points, seen), "costs_lengths": (length_figure, lines, steps, title)}
    data = fingerprint(*([json.loads(path.read_text(encoding="utf-8"))] for path in files))
    drawings = lambda: ((name, make(*what)) for name, (make, *what) in made.items())  # noqa: E731
    return save(drawings, folder, data, [path.name for path in files])


def draw(costs: Path, folder: Path) -> list[Path]:
    """Draws the two figures with the assumed constants of a GPU, and returns the paths."""
    return figures(Measured(costs, profile_of_point), None, folder, [costs])


def off(measured: Measured) -> str:
    """How far predictions are from what was measured on points that were not fitted, by kind."""
    found: dict[str, list[float]] = {}
    for point in (point for point in measured.points if point["role"] == "check"):
        known = point["bytes"] if point["kind"] == "memory" else point["median"]
        found.setdefault(point["kind"], []).append(measured.predicted(point) / known)
    return "Predicted over measured: " + ", ".join(f"{kind} {span(own)}" for kind, own in found.items()) + "."


def tables(measured: Measured, gpu: Measured | None) -> dict[str, str]:
    """The tables of docs/results/scale.md, by marker."""
    rates, source = (ASSUMED, "H100, assumed") if gpu is None else (gpu.constants, gpu.about)
    own, eight = measured.points[0]["model"], "Llama-3-8B"
    embedded = {own: measured.models[own]}
    hours = {
        name: sweep_cost.hours(model, partial(cells_of, model), by, element)
        for name, model, by, element in (
            (eight, ARCHITECTURES[eight], rates, 2),
            (own, embedded[own], measured.constants, measured.element),
        )
    }
    lengths = [label for label, tokens in LENGTHS.items() if tokens <= 2**17]
    long = f"{sweep_cost.swept(hours[eight])}\n\nThe first line: {sweep_cost.worked(hours[eight][0])}"
    return {
        "constants": constants(measured, source, rates),
        "check": f"{measured.compared('check')}\n\n{off(measured)}",
        "fit": measured.compared("fit"),
        "lengths": f"{source}; bfloat16.\n\n{scaled(ARCHITECTURES, LENGTHS, rates, 2, GPU_BLOCK)}",
        "embedded": scaled(embedded, lengths, measured.constants, measured.element, CPU_BLOCK),
        "longbench": f"{eight} in bfloat16; {source}; GPU hours.\n\n{long}",
        "longbench embedded": f"{own}; {measured.about}; hours.\n\n{sweep_cost.swept(hours[own][-1:])}",
    }


def main() -> int:
    """Rewrites the tables and figures; prints the paths of what it wrote."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--costs", type=Path, default=ROOT / "results/bench/costs.json", help="measured on a CPU")
    parser.add_argument("--constants", type=Path, default=None, help="the same, measured on a GPU")
    parser.add_argument("--doc", type=Path, default=ROOT / "docs/results/scale.md")
    parser.add_argument("--figures", type=Path, default=ROOT / "results/bench/figures")
    options = parser.parse_args()
    try:
        measured = Measured(options.costs, profile_of_point)
        gpu = None if options.constants is None else Measured(options.constants, profile_of_point)
        fill(options.doc, tables(measured, gpu))
    except UserError as error:
        print(f"scale: {error}", file=sys.stderr)
        return 2
    files = [options.costs] if gpu is None else [options.costs, options.constants]
    for path in [options.doc, *figures(measured, gpu, options.figures, files)]:
        print(path)
    return 0


if __name__ == "__main__":
    from pvcbench.cli.exits import program

    sys.exit(program(main))
