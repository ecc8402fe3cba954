"""Pictures of one run, functions of its rows alone: the same rows give the same bytes.

    from pvcbench import figures, store
    rows = store.load("results/default/0123456789ab")
    figures.draw(rows, Path("figures"))

Sizes are measured, never asked for. What has no value (out of reach, failed, not measured) is marked as such, so that
it cannot be mistaken for a zero.
"""

import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from pvcbench import stats

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "hatch.linewidth": 0.5,
    "legend.frameon": False,
    "svg.hashsalt": "pvcbench",
}
BLACK, ORANGE, SKY, GREEN, BLUE, RED, PURPLE, GREY = (  # Okabe and Ito's colours; grey for their yellow
    "#000000 #E69F00 #56B4E9 #009E73 #0072B2 #D55E00 #CC79A7 #7F7F7F".split()
)
SOLID, DASHED, DOTTED, MIXED = "-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (5, 1.5, 1.5, 1.5))
LOOKS = {
    "full": (BLACK, "*", DASHED),
    "pvc": (RED, "o", SOLID),
    "h2o": (BLUE, "s", DASHED),
    "streaming_llm": (GREEN, "^", MIXED),
    "random": (GREY, "X", DOTTED),
    "snapkv": (PURPLE, "D", SOLID),
    "pyramidkv": (ORANGE, "v", DASHED),
    "tova": (SKY, "P", MIXED),
    "pvc_kv": (ORANGE, "p", MIXED),
    "pvc_constant": (SKY, "h", DASHED),
    "knorm": (GREEN, "d", DASHED),
    "keydiff": (BLUE, "<", DOTTED),
    "ada_kv": (PURPLE, ">", DASHED),
}
OTHERS = [
    (colour, marker, line)
    for marker, line in zip("dvP<>phDs^", [DOTTED, SOLID, DASHED, MIXED, SOLID] * 2, strict=True)
    for colour in (SKY, ORANGE, PURPLE, BLUE, GREEN, RED, GREY)
]
SEQUENTIAL = matplotlib.colormaps["viridis"]
GONE, WHOLE = "0", "100"
BINS = (GONE, "0-20", "20-40", "40-60", "60-80", "80-100", WHOLE)  # % of the needle; the ends are exact
POOLED = "all methods"


def draw(rows: pd.DataFrame, folder: Path) -> list[Path]:
    """Draws every figure that the rows of one run allow, as PNG and SVG, and returns the paths."""
    rows = rows[rows["method"].notna()]
    makers = {
        "curve": curve,
        "needle_grid": needle_grid,
        "needle_survival": needle_survival,
        "survival_accuracy": survival_accuracy,
    }
    paths = []
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        for name, make in makers.items():
            figure = make(rows) if len(rows) else None
            if figure is not None:
                paths += _save(figure, Path(folder), name)
    return paths


def _save(figure: Figure, folder: Path, name: str) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    png, svg = folder / f"{name}.png", folder / f"{name}.svg"
    figure.savefig(png, dpi=160, metadata={"Software": None})
    figure.savefig(svg, metadata={"Date": None, "Creator": None})
    return [png, svg]


def looks(names: Sequence[str]) -> dict[str, tuple]:
    """Colour, marker and line of each method: fixed for the known ones, by a hash of the name for the others."""
    chosen = {name: LOOKS[name] for name in names if name in LOOKS}
    for name in sorted(set(names) - set(chosen)):
        start = zlib.crc32(name.encode()) % len(OTHERS)
        order = OTHERS[start:] + OTHERS[:start]
        chosen[name] = next((look for look in order if look not in chosen.values()), order[0])
    return chosen


def reach(error: object) -> float | None:
    """The smallest share of the cache, in %, that an error text says a method gets down to."""
    found = re.search(r"reach of ([\d.]+)%", error) if isinstance(error, str) else None
    return float(found[1]) if found else None


def reaches(rows: pd.DataFrame) -> dict[str, float]:
    """By method, where its curve has to end: its reach in %, if a budget below it was asked for."""
    found = {name: [reach(error) for error in part["error"]] for name, part in rows.groupby("method", sort=False)}
    known = {name: [value for value in values if value is not None] for name, values in found.items()}
    return {name: float(np.mean(values)) for name, values in known.items() if values}


def asked(budget: str) -> str:
    """A budget as people write it: 25%, 64 entries, or the text itself."""
    if re.fullmatch(r"\d+", budget):
        return f"{budget} entries"
    return f"{100 * float(budget):g}%" if re.fullmatch(r"\d*\.\d+(e-?\d+)?|\d+e-?\d+", budget) else budget


def budgets_of(rows: pd.DataFrame) -> list[str]:
    """The budgets of the methods (not the reference's), smallest first."""
    tokens, size = rows["prompt_tokens"].mean(), {}
    for budget, cell in rows[~rows["reference"]].groupby("budget"):
        kept = cell["kept_fraction"].astype(float).mean()
        share = float(budget) if re.fullmatch(r"[\d.]+(e-?\d+)?", budget) else kept
        size[budget] = share / tokens if re.fullmatch(r"\d+", budget) else share
    return sorted(size, key=lambda budget: (np.isnan(size[budget]), size[budget]))


def subject(rows: pd.DataFrame) -> str:
    """The title of every figure: task, model, prompt length, number of samples; protocol."""
    least, most = int(rows["prompt_tokens"].min()), int(rows["prompt_tokens"].max())
    tokens = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    model = str(rows["model"].iloc[0]).rstrip("/").split("/")[-1]
    samples = rows["sample"].nunique()
    protocol = rows["protocol"].iloc[0]
    aware = "question compressed with the context" if protocol["query_aware"] else "question unseen when compressed"
    return (
        f"{rows['task'].iloc[0]}, {model}, {tokens} prompt tokens, {samples} sample{'s' * (samples != 1)}\n"
        f"{aware}, decode: {protocol['decode']}"
    )


def metric(rows: pd.DataFrame) -> str:
    """The name of the score."""
    named = (next(iter(metrics)) for metrics in rows["metrics"] if isinstance(metrics, dict) and metrics)
    return next(named, "score").replace("_", " ")
