"""How figures look and speak: a fixed colour, marker and line for each method, budgets and titles in words.

looks(["pvc", "mine"])["pvc"]  # ("#D55E00", "o", "-")
"""

import re
import zlib
from collections.abc import Iterable

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.path import Path

from pvcbench.stats import floor

STYLE = {"font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 9, "legend.frameon": False}
STYLE |= {"axes.spines.right": False, "hatch.linewidth": 0.5, "svg.hashsalt": "pvcbench"}
COLOURS = "#000000 #E69F00 #56B4E9 #009E73 #0072B2 #D55E00 #CC79A7 #7F7F7F"  # Okabe and Ito's; grey for their yellow
SEQUENTIAL = matplotlib.colormaps["viridis"]
BLACK, ORANGE, SKY, GREEN, BLUE, RED, PURPLE, GREY = COLOURS.split()
DASHED, DOTTED, MIXED = (0, (5, 2)), (0, (1.5, 1.5)), (0, (5, 1.5, 1.5, 1.5))
LOOKS = {
    "full": (BLACK, "*", DASHED),
    "pvc": (RED, "o", "-"),
    "h2o": (BLUE, "s", DASHED),
    "streaming_llm": (GREEN, "^", MIXED),
    "random": (GREY, "X", DOTTED),
    "snapkv": (PURPLE, "D", "-"),
    "pyramidkv": (ORANGE, "v", DASHED),
    "tova": (SKY, "P", MIXED),
    "pvc_kv": (ORANGE, "p", MIXED),
    "pvc_constant": (SKY, "h", DASHED),
    "oracle_answer": (BLACK, "x", DOTTED),
    "oracle_future": (BLACK, "x", DOTTED),
}
BESIDE = ("random",)  # drawn in every panel, with the leaking references
HOLM_NOTE = (
    "Holm's verdict is of all comparisons together and stricter than an interval, which is of one: "
    "it may be missing where the interval excludes zero."
)
INCOMPLETE = "hollow, crossed: some samples\nhave no score; not ranked"
SHAPES = [("d", DOTTED), ("v", "-"), ("P", DASHED), ("<", MIXED), (">", "-"), ("p", DOTTED)]
OTHERS = [(colour, *shape) for shape in SHAPES for colour in (SKY, ORANGE, PURPLE, BLUE, GREEN, RED, GREY)]


def looks(names: Iterable[str]) -> dict[str, tuple]:
    """Colour, marker and line of each method: fixed for the known ones, by a hash of the name for the others."""
    chosen = {name: LOOKS[name] for name in names if name in LOOKS}
    for name in sorted(set(names) - set(chosen)):
        start, colours = zlib.crc32(name.encode()) % len(OTHERS), {look[0] for look in chosen.values()}
        order = sorted(OTHERS[start:] + OTHERS[:start], key=lambda look: look[0] in colours)  # new colours first
        chosen[name] = next((look for look in order if look not in chosen.values()), order[0])
    return chosen


def amount(budget: str) -> float | None:
    """A budget as a number (entries, or a share up to 1); None if the method's own settings fix its size."""
    return float(budget) if re.fullmatch(r"[\d.]+(e-?\d+)?", budget) else None


def asked(budget: str) -> str:
    """A budget as people write it: 25%, 64 entries, or the method's own text."""
    number = amount(budget)
    return budget if number is None else f"{budget} entries" if budget.isdigit() else f"{100 * number:g}%"


def budgets_of(rows: pd.DataFrame) -> list[str]:
    """The budgets of all methods but the reference, smallest first."""
    size = {}
    for budget, cell in rows[~rows["reference"]].groupby("budget"):
        number = amount(budget)
        share = cell["kept_fraction"].astype(float).mean() if number is None else number
        size[budget] = share / rows["prompt_tokens"].mean() if budget.isdigit() else share
    return sorted(size, key=lambda budget: (np.isnan(size[budget]), size[budget]))


def subject(rows: pd.DataFrame) -> str:
    """The title of every figure: task, model, length and samples; the protocol; the full cache where it fails most."""
    return "\n".join(filter(None, [measured(rows), floor.sentence(rows)]))


def measured(rows: pd.DataFrame) -> str:
    """What was measured, and by which protocol."""
    least, most = int(rows["prompt_tokens"].min()), int(rows["prompt_tokens"].max())
    tokens = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    samples, protocol = rows["sample"].nunique(), rows["protocol"].iloc[0]
    model = str(rows["model"].iloc[0]).rstrip("/").split("/")[-1]
    kind = "tokens" if "name" in protocol else "prompt tokens"
    what = f"{rows['task'].iloc[0]}, {model}, {tokens} {kind}, {samples} sample{'s' * (samples != 1)}"
    if "name" in protocol:
        every = f", evicting every {protocol['every']} tokens" if protocol.get("every", 1) > 1 else ""
        decode = f", decode: {protocol['decode']}" if protocol["name"] == "continuation" else ""
        return f"{what}\nprotocol: {protocol['name']}{every}{decode}"
    when = "with the context" if protocol["query_aware"] else "after compression"
    return f"{what}\nquestion seen {when}, decode: {protocol['decode']}"


def mark_incomplete(axes, x: float, y: float, look: tuple, size: float = 6) -> None:
    """Draws a point that is a mean over some samples only: hollow, with a cross in it."""
    colour, marker, *_ = look
    same = {"color": colour, "linestyle": "none", "clip_on": False, "zorder": 6}
    axes.plot(x, y, marker=marker, markersize=size + 3, markerfacecolor="white", label="_incomplete", **same)
    cross = same | {"color": BLACK, "marker": "x", "markersize": 0.7 * size, "markeredgewidth": 1.0}
    axes.plot(x, y, label="_incomplete", **cross)


def incomplete_entry() -> Line2D:
    """What a legend says of such points."""
    strokes = Path([(-0.4, -0.4), (0.4, 0.4), (-0.4, 0.4), (0.4, -0.4)], [Path.MOVETO, Path.LINETO] * 2)
    both = Path.make_compound_path(Path.unit_circle(), strokes)
    look = {"color": BLACK, "markerfacecolor": "none", "markersize": 9, "linestyle": "none"}
    return Line2D([], [], marker=both, label=INCOMPLETE, **look)


def metric(rows: pd.DataFrame) -> str:
    """The name of the score; of data sets with metrics of their own it is a mean score."""
    names = {next(iter(metrics)) for metrics in rows["metrics"] if metrics}
    if len(names) > 1:
        return "mean score of the data sets" if rows["stratum"].nunique() > 1 else "score"
    return next((next(iter(metrics)) for metrics in rows["metrics"] if metrics), "score").replace("_", " ")


def panels_of(number: int, rows: pd.DataFrame, most: int = 3, panel=(3.2, 2.3)) -> tuple[Figure, list]:
    """A figure with panels of equal axes, up to `most` in a row; `panel` is the size of one in inches."""
    wide = min(number, 2 if number == 4 else most)
    tall = -(-number // wide)
    panel = (5.6, 3.0) if number == 1 else panel
    figure = Figure(figsize=(1.6 + panel[0] * wide, 1.1 + panel[1] * tall), layout="constrained")
    panels = list(figure.subplots(tall, wide, squeeze=False, sharex=True, sharey=True).flat)
    for unused in panels[number:]:
        unused.remove()
    for last in panels[max(0, number - wide) : number]:
        last.tick_params(labelbottom=True)
    figure.suptitle(subject(rows), fontsize=9)
    return figure, panels[:number]
