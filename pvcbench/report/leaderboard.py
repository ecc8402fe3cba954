"""The leaderboard: a line for every method at every size of a setting, each number as text and as what it is sorted by.

Lines of different settings never share an order: a score of one task is no better than one of another.
"""

import math
from collections.abc import Mapping

import pandas as pd

from pvcbench.report.numbers import interval, number
from pvcbench.stats import floor, sizes
from pvcbench.stats.significance import ALPHA

COLUMNS = {  # what can be sorted by, and its heading
    "method": "method",
    "asked": "size asked",
    "score": "score [95%]",
    "difference": "minus full [95%]",
    "p": "p (Holm)",
    "n": "samples",
    "kept": "cache kept",
    "mib": "MiB",
    "prefill": "prefill (full = 1)",
    "decode": "decode (full = 1)",
}
ALONE = "not measured alone"  # where cells stepped together no time is one cell's
NOT_BESIDE = "not measured beside the full cache"


def lines_of(run: Mapping, compared: pd.DataFrame, times: pd.DataFrame, places: Mapping) -> list[dict]:
    """The lines of a setting, the full cache first; `run` is `scores.run_of`'s, `places` has each cell's runs."""
    corrected = compared.set_index(["method", "budget"])["p_holm"].to_dict()
    looks = {method["name"]: method for method in run["methods"]}
    lines = []
    for cell in run["parts"][0]["cells"]:
        key, whole = (cell["method"], cell["budget"]), cell["reference"]
        line = {name: looks[cell["method"]][name] for name in ("reference", "leaks", "colour")}
        line |= {"method": cell["method"], "budget": cell["budget"], "runs": places.get(key, [])}
        line |= {"asked": "all" if whole else cell["asked"]} | texts(run, cell, corrected.get(key, math.nan))
        line |= times_of(cell, times)
        lines.append(line | {"sort": sort_keys(run, cell, line, corrected.get(key, math.nan), times)})
    return lines


def texts(run: Mapping, cell: Mapping, p: float) -> dict:
    """What a line says of score and size, or why it has no score."""
    if cell["score"] is None:
        return {"score": None, "why": absent(cell), "complete": False, "difference": ""}
    digits, fine, whole = run["digits"], 3 if run["lower"] else run["digits"], cell["complete"]
    ends = interval(*(gap(cell[name]) for name in ("low", "high")), 1, digits)
    wide = [gap(cell[name]) for name in ("difference_low", "difference_high")]
    hidden = run["floor"] is not None and floor.unseen(gap(cell["difference"]), *wide)
    return {
        "score": number(cell["score"], 1, digits),
        "interval": "unbounded" if cell["unbounded"] else ends or "no interval",
        "difference": floor.WORD if hidden else number(gap(cell["difference"]), 1, fine, True),
        "difference_interval": "" if hidden else interval(*wide, 1, fine, True),
        "p": probability(p),
        "differs": bool(p < ALPHA),
        "size": size_of(cell),
        "mib": f"{cell['mib']:.1f}" + ("" if whole or cell["full_mib"] is None else f" of {cell['full_mib']:.1f}"),
        "n": str(cell["samples"]) if whole else f"{cell['samples']} of {cell['of']}: incomplete, not ranked",
        "complete": whole,
    }


def sort_keys(run: Mapping, cell: Mapping, line: Mapping, p: float, times: pd.DataFrame) -> dict:
    """What a line is sorted by in every column; None stands last in either direction."""
    ranked = cell["complete"] and cell["score"] is not None
    hidden = line["difference"] == floor.WORD
    keys = {"method": cell["method"], "asked": 0 if cell["reference"] else size_order(run, cell)}
    keys |= {"kept": cell["entries"] if cell["kept"] is None else cell["kept"], "mib": cell["mib"]}
    keys |= {"score": cell["score"] if ranked else None, "n": cell["samples"], "p": known(p)}
    keys |= {"difference": cell["difference"] if ranked and not hidden else None}
    ratios = of_cell(cell, times)
    return keys | {name: known(ratios[name]) for name in ("prefill", "decode")}


def times_of(cell: Mapping, times: pd.DataFrame) -> dict:
    """Both times as multiples of the full cache's, or why there is none."""
    ratios = of_cell(cell, times)
    return {"prefill": multiple(ratios["prefill"], NOT_BESIDE), "decode": multiple(ratios["decode"], ALONE)}


def of_cell(cell: Mapping, times: pd.DataFrame) -> dict:
    """The ratios of `relative_times` of a cell, 1 of the full cache itself, NaN where there are none."""
    key = cell["method"], cell["budget"]
    if cell["reference"]:
        return {"prefill": 1.0, "decode": 1.0}
    return times.loc[key].to_dict() if key in times.index else {"prefill": math.nan, "decode": math.nan}


def multiple(ratio: float, otherwise: str) -> str:
    """A ratio with two digits, or what is said where there is none."""
    return otherwise if math.isnan(ratio) else f"{ratio:.2f}"


def size_order(run: Mapping, cell: Mapping) -> int:
    """The place of the size that was asked for among those of the setting, the smallest first."""
    return 1 + [entry["budget"] for entry in run["budgets"]].index(cell["budget"])


def size_of(cell: Mapping) -> str:
    """What a cell kept, by both measures where they differ."""
    if cell["kept"] is None:
        return f"{cell['entries']:.1f}% of the entries"
    if abs(cell["kept"] - cell["entries"]) <= 100 * sizes.APART:
        return f"{cell['kept']:.1f}%"
    return f"{cell['kept']:.1f}% of the bytes, {cell['entries']:.1f}% of the entries"


def absent(cell: Mapping) -> str:
    """Why a cell has no score, short."""
    if cell["reach"] is not None and not pd.isna(cell["reach"]):
        return f"out of reach (below {100 * cell['reach']:.1f}%)"
    return f"no score: {cell['error'] if isinstance(cell['error'], str) else 'none was given'}"


def probability(p: float) -> str:
    """A p-value; nothing where there is none."""
    return "" if math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def gap(number: float | None) -> float:
    """NaN in the place of nothing."""
    return math.nan if number is None else number


def known(number: float) -> float | None:
    """Nothing in the place of NaN."""
    return None if math.isnan(number) else round(float(number), 6)
