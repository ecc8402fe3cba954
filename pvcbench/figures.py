"""Pictures of one run, functions of its rows alone: the same rows give the same bytes.

    figures.draw(store.load("results/default/0123456789ab"), Path("figures"))

Sizes are measured, never the ones asked for. What has no value (out of reach, failed, not measured) is marked as such,
so that nobody takes it for a zero.
"""

import re
import zlib
from collections.abc import Iterable
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from pvcbench import stats

STYLE = {"font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 9, "legend.frameon": False}
STYLE |= {"axes.spines.right": False, "hatch.linewidth": 0.5, "svg.hashsalt": "pvcbench"}
COLOURS = "#000000 #E69F00 #56B4E9 #009E73 #0072B2 #D55E00 #CC79A7 #7F7F7F"  # Okabe and Ito's; grey for their yellow
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
}
SHAPES = [("d", DOTTED), ("v", "-"), ("P", DASHED), ("<", MIXED), (">", "-"), ("p", DOTTED)]
OTHERS = [(colour, *shape) for shape in SHAPES for colour in (SKY, ORANGE, PURPLE, BLUE, GREEN, RED, GREY)]
SEQUENTIAL = matplotlib.colormaps["viridis"]
BINS = ("0", "0-20", "20-40", "40-60", "60-80", "80-100", "100")  # % of the needle; the first and last are exact
POOLED = "all methods"


def draw(rows: pd.DataFrame, folder: Path) -> list[Path]:
    """Draws every figure that the rows of one run allow, as PNG and SVG, and returns the paths."""
    rows, paths = rows[rows["method"].notna()], []
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        for make in (curve, needle_grid, needle_survival, survival_accuracy):
            figure = make(rows) if len(rows) else None
            if figure is not None:
                folder.mkdir(parents=True, exist_ok=True)
                for ending, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
                    paths.append(folder / f"{make.__name__}.{ending}")
                    figure.savefig(paths[-1], dpi=160, metadata=metadata)
    return paths


def looks(names: Iterable[str]) -> dict[str, tuple]:
    """Colour, marker and line of each method: fixed for the known ones, by a hash of the name for the others."""
    chosen = {name: LOOKS[name] for name in names if name in LOOKS}
    for name in sorted(set(names) - set(chosen)):
        start = zlib.crc32(name.encode()) % len(OTHERS)
        order = OTHERS[start:] + OTHERS[:start]
        chosen[name] = next((look for look in order if look not in chosen.values()), order[0])
    return chosen


def reach(errors: pd.Series) -> float | None:
    """The share of the cache, in %, that a method cannot get below, if its error rows name one."""
    found = [re.search(r"reach of ([\d.]+)%", error) for error in errors if isinstance(error, str)]
    known = [float(match[1]) for match in found if match]
    return float(np.mean(known)) if known else None


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
    """The title of every figure: task, model, prompt length and number of samples; the protocol."""
    least, most = int(rows["prompt_tokens"].min()), int(rows["prompt_tokens"].max())
    tokens = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    model, samples, protocol = str(rows["model"].iloc[0]), rows["sample"].nunique(), rows["protocol"].iloc[0]
    what = f"{rows['task'].iloc[0]}, {model.rstrip('/').split('/')[-1]}, {tokens} prompt tokens, {samples} samples"
    when = "with the context" if protocol["query_aware"] else "after compression"
    return f"{what}\nquestion seen {when}, decode: {protocol['decode']}"


def metric(rows: pd.DataFrame) -> str:
    """The name of the score."""
    return next((next(iter(metrics)) for metrics in rows["metrics"] if metrics), "score").replace("_", " ")


def curve(rows: pd.DataFrame) -> Figure | None:
    """Score against measured cache size, one line per method, the full cache as a reference."""
    table = stats.summarize(rows)
    scored, style, handles = table[table["score"].notna()], looks(rows["method"].unique()), []
    if scored.empty:
        return None
    figure = Figure(figsize=(8.4, 4.4), layout="constrained")
    axes = figure.add_subplot(xlim=(0, 100), xlabel="KV cache kept, % of the prompt's", ylabel=metric(rows))
    if scored["score"].between(0, 1).all():
        axes.set_ylim(-0.04, 1.04)
    for name, cells in table.groupby("method", sort=False):
        (colour, marker, line), points = style[name], cells[cells["score"].notna()].sort_values("kept_fraction")
        if cells["reference"].any():
            for _, point in points.iterrows():
                axes.axhline(point["score"], color=colour, linestyle=line, linewidth=1.2, label=name)
                axes.axhspan(point["low"], point["high"], facecolor="none", edgecolor="#BBBBBB", hatch="....", zorder=0)
                handles.append(Line2D([], [], color=colour, linestyle=line, label=f"{name} cache, {point['mib']:.1f} MiB"))
            continue
        x, low, high = 100 * points["kept_fraction"], points["low"].astype(float), points["high"].astype(float)
        axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
        axes.errorbar(x, points["score"], [points["score"] - low, high - points["score"]], fmt="none", ecolor=colour,
                      elinewidth=0.6, alpha=0.6)
        options = {"color": colour, "linestyle": line, "marker": marker, "markersize": 6, "label": name}
        axes.plot(x, points["score"], clip_on=False, zorder=3, markeredgecolor="white", markeredgewidth=0.6, **options)
        handles.append(Line2D([], [], **options))
        handles += _absent(axes, name, cells, points, colour)
    full_size_axis(axes, scored)
    axes.set_title(subject(rows))
    handles.append(Patch(color="#CCCCCC", label="95% interval"))
    figure.legend(handles=handles, loc="outside right upper", handlelength=3)
    return figure
