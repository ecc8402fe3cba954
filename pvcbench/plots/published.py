"""Other people's numbers: `data/published/*.csv`, each line with its source, to stand beside ours.

Speeds (`*_throughput.csv`) match the same model and setting. Scores have the columns task, model (as it occurs in the
model's name), protocol (aware, agnostic, or perplexity's own), parts (data sets in the mean), length (of the longest
prompt, tokens), system, method (ours of that name), budget (as ours is asked), score, scale (what its largest score is
called: 100 for per cent), source. Claims (`*_claims.csv`) are compared in words, in docs/results/analysis.md. What is
not the same task, model, protocol, number of sets and length stays away.
"""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from textwrap import fill

import pandas as pd
from matplotlib.lines import Line2D

from pvcbench.plots.style import DOTTED, looks
from pvcbench.stats import summaries

PACKAGE = Path(__file__).parent.parent
PLACES = (PACKAGE / "data" / "published", PACKAGE.parent / "data" / "published")  # of a wheel, of the sources
FOLDER = next((one for one in PLACES if one.is_dir()), PLACES[0])
SPEEDS, CLAIMS = "_throughput", "_claims"  # endings of files whose lines are no scores of ours


@cache
def numbers(kind: str = "") -> pd.DataFrame:
    """All published scores, or the lines of the files whose names end with `kind`; budgets are text."""
    paths = sorted(FOLDER.glob("*.csv"))
    if kind:
        paths = [path for path in paths if path.stem.endswith(kind)]
    else:
        paths = [path for path in paths if not path.stem.endswith((SPEEDS, CLAIMS))]
    frames = [pd.read_csv(path, dtype={"budget": str}) for path in paths]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def plain(name: str) -> str:
    """A model's name without case and punctuation."""
    return re.sub("[^a-z0-9]", "", str(name).lower())


def beside(rows: pd.DataFrame) -> pd.DataFrame:
    """The published numbers that may stand beside these rows of one run; empty where there are none."""
    if rows.empty:
        return pd.DataFrame()
    task, model = rows["task"].iloc[0], plain(rows["model"].iloc[0])
    speeds = task == "throughput"
    known = numbers(SPEEDS) if speeds else numbers()
    same = [plain(line.model) in model and (speeds or line.task == task) for line in known.itertuples()]
    known = known[same] if any(same) else known.iloc[:0]
    if known.empty:
        return known
    if speeds:
        return known[known["setting"].isin(rows["sample"])].reset_index(drop=True)
    longest = rows["prompt_tokens"].max()
    fits = known["protocol"].eq(protocol_of(rows)) & known["parts"].eq(summaries.headline(rows)["stratum"].nunique())
    fits &= known["length"].ge(longest) & known["length"].lt(2 * longest)
    return known[fits].reset_index(drop=True)


def protocol_of(rows: pd.DataFrame) -> str:
    """The protocol as published tables name it here: aware, agnostic, or one of perplexity's."""
    protocol = rows["protocol"].iloc[0]
    return protocol.get("name") or ("aware" if protocol["query_aware"] else "agnostic")


def place(budget: str, prompt_tokens: float) -> float:
    """The share of the cache that a published budget asks for, in %."""
    return 100 * (min(1.0, int(budget) / prompt_tokens) if budget.isdigit() else float(budget))


def mark(axes, rows: pd.DataFrame, style: Mapping[str, tuple]) -> list[Line2D]:
    """Draws published scores into a panel of score against size, hollow and at the size asked; legend entries."""
    known = beside(rows)
    if known.empty:
        return []
    for (system, method), lines in known.groupby(["system", "method"], sort=False):
        colour, marker, _ = style.get(method) or looks([method])[method]
        look = {"color": colour, "markerfacecolor": "none", "label": f"{system}, published"}
        values = lines["score"] / lines["scale"]
        if set(lines["budget"]) == {"1.0"}:
            axes.axhline(values.iloc[0], color=colour, linestyle=DOTTED, linewidth=1.2, label=look["label"])
            continue
        x = [place(budget, rows["prompt_tokens"].mean()) for budget in lines["budget"]]
        axes.plot(x, values, linestyle="none", marker=marker, markersize=6, clip_on=False, **look)
    own = [line for line in axes.get_lines() if line.get_label().endswith(", published")]
    sources = [
        Line2D([], [], linestyle="none", label=fill(f"published: {one}", 42)) for one in known["source"].unique()
    ]
    return [_legend_entry(line) for line in own] + sources if len(known) else []


def _legend_entry(line: Line2D) -> Line2D:
    look = {"color": line.get_color(), "linestyle": line.get_linestyle(), "marker": line.get_marker()}
    return Line2D([], [], markerfacecolor="none", label=line.get_label(), **look)
