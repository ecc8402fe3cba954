"""What the experiments of every method cost: by the cost model on an H100, and by the benchmark on one core."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import yaml

import pvcbench
from pvcbench.config import building
from pvcbench.costs import model as costs
from pvcbench.costs import sweep_cost
from pvcbench.costs.fitted import Measured, every_layer
from pvcbench.costs.model import ARCHITECTURES, Architecture, Profile
from pvcbench.policy import Method
from scripts.numbers_bench import bench
from scripts.numbers_words import paragraph
from scripts.scale import ASSUMED, profile_of, profile_of_point, settled
from scripts.written_page import ROOT, table

COUNTED = ("methods_needle", "methods_needle_agnostic")
LARGE = "Llama-3-8B"


def cells_of(rows: pd.DataFrame, methods: Mapping[str, Method], shape) -> list[sweep_cost.CellCost]:
    """The cells that have answers, by what they kept; the full cache first."""
    found = [sweep_cost.CellCost.of("full", Method(), 1.0, shape)]
    own = rows[rows["error"].isna() & ~rows["reference"].astype(bool)]
    for (name, _), cell in own.groupby(["method", "budget"], sort=False):
        share, method = float(cell["kept_fraction"].astype(float).mean()), methods[name]
        if method.prunes:
            method = settled(method, share, shape) or method
            found.append(sweep_cost.CellCost.of(name, method, share, shape, profile_of(method, shape).reaching))
        else:
            found.append(sweep_cost.CellCost.of(name, method, share, shape))
    return found


def read_again(model: Architecture, tokens: int, element: int) -> dict[str, float]:
    """A second reading of a prompt after itself, every row of it observed: what a method with passes adds at most."""
    whole = Profile((2 * tokens,) * model.layers, (tokens,) * model.layers)
    first = Profile((tokens,) * model.layers, (0,) * model.layers)
    one, two = (costs.prefill(model, profile, element) for profile in (first, whole))
    return {term: two[term] - one[term] if term.endswith("flop") else two[term] for term in two}


def sample_cost(folder: Path, rows: pd.DataFrame, model: Architecture, rates: Mapping[str, float]) -> float:
    """Seconds of one sample of a run: shared prefills, readings again, all cells' answers at their longest."""
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["config"]
    methods = building.build_methods(config["methods"])
    tokens, new = round(rows["prompt_tokens"].mean()), config["task"]["max_new_tokens"]
    shape = every_layer(tokens, model.layers)
    parts = sweep_cost.shared(model, cells_of(rows, methods, shape), new, 2)
    again = sum(type(method).passes is not Method.passes for method in methods.values())
    parts["passes"] = costs.times(again, read_again(model, tokens, 2))
    return sum(costs.seconds(work, rates) for work in parts.values())


def on_one_core(methods: int, results: Path) -> float:
    """Seconds of a sample with so many methods, along the straight line of the benchmark of methods."""
    measured = bench("methods", results)
    (few, *_, many), (first, *_, last) = measured["counts"], measured["together_s"]
    return first + (last - first) * (methods - few) / (many - few)


def told(hours: Sequence[float]) -> list[str]:
    """Hours of a core, and minutes of a GPU."""
    core, *gpu = hours
    return [f"{core:.1f}", *(f"{60 * one:.1f}" for one in gpu)]


def evidence(results: Path = ROOT / "results") -> str:
    """Hours of the experiments that run every method on needles."""
    measured = Measured(results / "bench" / "costs.json", profile_of_point)
    models = {"the embedded model": measured.models[measured.points[0]["model"]], LARGE: ARCHITECTURES[LARGE]}
    most = bench("methods", results)["counts"][-1]
    lines, totals = [], [0.0] * (len(models) + 1)
    for name in COUNTED:
        for folder, rows in pvcbench.load(results / name).groupby("folder"):
            samples = rows["sample"].nunique()
            methods = rows.loc[~rows["reference"].astype(bool), "method"].nunique()
            spent = [samples * on_one_core(methods, results) / 3600]
            spent += [samples * sample_cost(Path(folder), rows, model, ASSUMED) / 3600 for model in models.values()]
            totals = [total + one for total, one in zip(totals, spent, strict=True)]
            lines.append([f"`{name}`", str(samples), str(methods), *told(spent)])
    lines.append(["all", "", "", *told(totals)])
    head = ["experiment", "samples", "methods", "the embedded model, one core, h"]
    head += [f"{name}, one H100, min" for name in models]
    said = (
        "One core: along the straight line of the benchmark of [methods in one run]"
        "(../results/performance.md#methods-in-one-run), whose samples are of this length and see the question; it "
        f"ends at {most} methods. H100: by the [cost model](../results/scale.md) with its assumed constants, every "
        "answer at its longest, and a whole second reading for each method that reads the prompt again, so rather too "
        "much than too little. Nothing was measured on a GPU."
    )
    return f"{paragraph(said)}\n\n{table(head, lines)}"
