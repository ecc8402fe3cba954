"""How figures look and speak: a fixed colour, marker and line for each method, budgets and titles in words.

looks(["pvc", "mine"])["pvc"]  # ("#D55E00", "o", "-")
"""

import re
import zlib
from collections.abc import Iterable

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.path import Path

from pvcbench.stats import floor, ranking

STYLE = {"font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 9, "legend.frameon": False}
STYLE |= {"axes.spines.right": False, "axes.spines.top": False, "hatch.linewidth": 0.5, "svg.hashsalt": "pvcbench"}
COLOURS = "#000000 #E69F00 #56B4E9 #009E73 #0072B2 #D55E00 #CC79A7 #7F7F7F"  # Okabe and Ito's; grey for their yellow
SEQUENTIAL = matplotlib.colormaps["viridis"]
BLACK, ORANGE, SKY, GREEN, BLUE, RED, PURPLE, GREY = COLOURS.split()
DASHED, DOTTED, MIXED = (0, (5, 2)), (0, (1.5, 1.5)), (0, (5, 1.5, 1.5, 1.5))
LOOKS = {  # in the order that methods have in every picture and table
    "full": (BLACK, "*", DASHED),
    "pvc": (RED, "o", "-"),
    "pvc_kv": (ORANGE, "p", MIXED),
    "pvc_constant": (SKY, "h", DASHED),
    "h2o": (BLUE, "s", DASHED),
    "streaming_llm": (GREEN, "^", MIXED),
    "snapkv": (PURPLE, "D", "-"),
    "pyramidkv": (ORANGE, "v", DASHED),
    "tova": (SKY, "P", MIXED),
    "random": (GREY, "X", DOTTED),
    "oracle_answer": (BLACK, "x", DOTTED),
    "oracle_future": (BLACK, "x", DOTTED),
}
FLOOR = "random"  # evicts by chance: what a method must beat
HOLM_NOTE = (
    "Holm's verdict is of all comparisons together and stricter than an interval, which is of one: "
    "it may be missing where the interval excludes zero."
)
INCOMPLETE = "hollow, crossed: some samples have no score; not ranked"
DECODING = {"grow": "later tokens are all kept", "hold": "later tokens evict others"}
SHAPES = [("d", DOTTED), ("v", "-"), ("P", DASHED), ("<", MIXED), (">", "-"), ("p", DOTTED)]
OTHERS = [(colour, *shape) for shape in SHAPES for colour in (SKY, ORANGE, PURPLE, BLUE, GREEN, RED, GREY)]


def looks(names: Iterable[str]) -> dict[str, tuple]:
    """Colour, marker and line of each method: fixed for the known ones, by a hash of the name for the others."""
    chosen = {name: LOOKS[name] for name in ordered(names) if name in LOOKS}
    for name in sorted(set(names) - set(chosen)):
        start, colours = zlib.crc32(name.encode()) % len(OTHERS), {look[0] for look in chosen.values()}
        order = sorted(OTHERS[start:] + OTHERS[:start], key=lambda look: look[0] in colours)  # new colours first
        chosen[name] = next((look for look in order if look not in chosen.values()), order[0])
    return chosen


def ordered(names: Iterable[str], leaks: Iterable[str] = ()) -> list[str]:
    """Methods in the one order of all pictures and tables: the known ones, others by name, the floor, what leaks."""
    known, leaks = list(LOOKS), set(leaks)

    def place(name: str) -> tuple:
        last = 2 if name in leaks else 1 if name == FLOOR else 0
        return last, known.index(name) if name in LOOKS else len(known), name

    return sorted(set(names), key=place)


def methods_of(rows: pd.DataFrame) -> list[str]:
    """The methods of some rows or of a summary in that order, without the full cache."""
    return ordered(rows[~rows["reference"].astype(bool)]["method"], ranking.leaking(rows))


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """The lines of a summary with its methods in that order, each method's in their own."""
    names = ordered(table["method"], ranking.leaking(table))
    return table.iloc[np.argsort([names.index(name) for name in table["method"]], kind="stable")]


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
        decode = f", {decoding(protocol)}" if protocol["name"] == "continuation" else ""
        return f"{what}\nprotocol: {protocol['name']}{every}{decode}"
    when = "before" if protocol["query_aware"] else "only after"
    if "history" in protocol:
        return f"{what}\n{conversation(protocol, when)}"
    return f"{what}\nthe question is seen {when} the cache is cut; {decoding(protocol)}"


def conversation(protocol: dict, when: str) -> str:
    """How the turns of a conversation met the cache."""
    before = "golden answers" if protocol["history"] == "golden" else "the model's own answers"
    if protocol["recompress"]:
        return f"every turn is cut anew, its question seen {when} that; later turns follow {before}"
    return f"the first question is seen {when} the cache is cut, later ones follow uncut after {before}"


def decoding(protocol: dict) -> str:
    """What becomes of the cache while later tokens come."""
    every = f", every {protocol['interval']} tokens" if protocol.get("interval", 1) > 1 else ""
    return DECODING[protocol["decode"]] + every + (", but none of the prompt" * ("prompt" in protocol))


def score_label(rows: pd.DataFrame) -> str:
    """The axis of scores in words, with the ends of its scale where it has some."""
    inside = rows["score"].dropna().astype(float).between(0, 1).all()
    return metric(rows) + (" (mean; 1 is the best)" if inside else " (mean)")


def mark_incomplete(axes, x: float, y: float, look: tuple, size: float = 6, **more) -> None:
    """Draws a point that is a mean over some samples only: hollow, with a cross in it."""
    colour, marker, *_ = look
    same = {"color": colour, "linestyle": "none", "clip_on": False, "zorder": 6} | more
    axes.plot(x, y, marker=marker, markersize=size + 3, markerfacecolor="white", label="_incomplete", **same)
    cross = same | {"color": BLACK, "marker": "x", "markersize": 0.7 * size, "markeredgewidth": 1.0}
    axes.plot(x, y, label="_incomplete", **cross)


def told(name: str) -> str:
    """A method's name in a legend."""
    return "full cache" if name == "full" else name


def entry(name: str, look: tuple, marked: bool = True) -> Line2D:
    """A method in a legend: its line, and its marker unless the full cache's or not `marked`."""
    colour, marker, line = look
    marker = marker if marked and name != "full" else "none"
    return Line2D([], [], color=colour, linestyle=line, marker=marker, linewidth=1.2, label=told(name))


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
