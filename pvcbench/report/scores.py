"""What the page shows of a setting with scores: the cells of its leaderboard and curves, as `stats` summarises them."""

import math

import numpy as np
import pandas as pd

from pvcbench.plots import cautions
from pvcbench.plots.needle import needle_shares
from pvcbench.plots.style import DASHED, DOTTED, MIXED, asked, budgets_of, looks, metric
from pvcbench.report.numbers import scale_of
from pvcbench.stats import floor, ranking, sizes, summaries
from pvcbench.stats import perplexity as likelihood
from pvcbench.stats.failures import reach

SYMBOLS = {"*": "star", "o": "circle", "s": "square", "^": "triangle-up", "X": "x", "D": "diamond", "P": "cross"}
SYMBOLS |= {"v": "triangle-down", "p": "pentagon", "h": "hexagon", "d": "diamond-tall", "<": "triangle-left"}
SYMBOLS |= {">": "triangle-right", "x": "x-thin-open"}
DASHES = {"-": "solid", DASHED: "dash", DOTTED: "dot", MIXED: "dashdot"}
SIZES = ("mib", "full_mib", "prefill_s", "kept_entries")


def run_of(rows: pd.DataFrame, summary: pd.DataFrame | None = None) -> dict:
    """One setting as the page needs it: what it is, its methods' looks, and the cells of each of its parts."""
    summary = likelihood.shown(rows) if summary is None else summary
    perplexity = "perplexity" in summary
    scale, digits = (1, 2) if perplexity else scale_of(rows)
    parts = [{"name": "all samples", "cells": cells_of(summary, rows, scale)}]
    if not perplexity and summaries.divided(rows):
        table = summaries.breakdown(rows)
        for (kind, part), lines in table[table["kind"] != "all"].groupby(["kind", "part"], sort=False):
            parts.append({"name": f"{kind} {part}", "cells": cells_of(lines, rows, scale)})
    name = "perplexity" if perplexity else metric(rows)
    return {
        "metric": name + (", %" if scale == 100 else ""),
        "difference": "NLL minus full, nats per token" if perplexity else "minus full",
        "lower": perplexity,
        "digits": digits,
        "scale": scale,
        "bounded": not perplexity and scale == 100,
        "sizes": {"kept": f"KV cache kept: {sizes.MEASURES['kept_bytes']}, %"}
        | {"entries": f"KV cache kept: {sizes.MEASURES['kept_fraction']}, %"},
        "cautions": cautions.of(rows, summary),
        "floor": floor.sentence(rows),
        "methods": methods_of(rows, summary),
        "budgets": [{"budget": budget, "asked": asked(budget)} for budget in budgets_of(rows)],
        "parts": parts,
    }


def methods_of(rows: pd.DataFrame, summary: pd.DataFrame) -> list[dict]:
    """The methods, the reference first, with the colour, marker and line that the figures give them.

    `reach` is where a method's curve ends, in % of the bytes, `reach_entries` of the entries.
    """
    found, leaks = [], ranking.leaking(rows)
    for name, (colour, marker, line) in looks(rows["method"].unique()).items():
        own = rows["method"] == name
        known = {"name": name, "reference": bool(rows[own]["reference"].any()), "leaks": name in leaks}
        known["reach_entries"] = end = reach(rows[own])
        known["reach"] = None if end is None else round(100 * sizes.placed(summary, end / 100), 6)
        found.append(known | {"colour": colour, "symbol": SYMBOLS[marker], "dash": DASHES[line]})
    return sorted(found, key=lambda method: (not method["reference"], method["name"]))


def cells_of(table: pd.DataFrame, rows: pd.DataFrame, scale: float) -> list[dict]:
    """The lines of a summary with scores in the page's unit, and what is measured beside them."""
    likely, good = "perplexity" in table, rows[rows["error"].isna()]
    decoding = good.assign(decode_s=good["decode_s"].astype(float)).groupby(["method", "budget"])["decode_s"].median()
    shares = needle_shares(good)
    layers = {
        key: np.mean(np.stack(list(cell)), axis=0) for key, cell in shares.groupby(["method", "budget"])["layers"]
    }
    found = []
    for line in table.to_dict("records"):
        key = line["method"], line["budget"]
        names = ("method", "budget", "reference", "leaks", "samples", "complete", "errors", "error", "reach")
        cell = {name: line[name] for name in names} | {"of": line["asked"]}
        cell["error"] = cell["error"] if isinstance(cell["error"], str) else None  # pandas makes None NaN
        cell["reach"] = None if pd.isna(cell["reach"]) else float(cell["reach"])
        cell |= {"asked": asked(line["budget"]), "kept": value(line["kept_bytes"], 100)}
        cell["entries"] = value(line["kept_fraction"], 100)
        cell |= {name: value(line[name]) for name in SIZES}
        cell |= {name: value(line[name], scale) for name in ("score", "low", "high")}
        cell["unbounded"] = bool(np.isinf([line["low"], line["high"]]).any())
        names = [f"nll_{name}" if likely else name for name in ("difference", "difference_low", "difference_high")]
        for shown, name in zip(("difference", "difference_low", "difference_high"), names, strict=True):
            cell[shown] = value(line.get(name), 1 if likely else scale)
        cell |= {"decode_s": value(decoding.get(key)), "needle": [value(share, 100) for share in layers.get(key, ())]}
        found.append(cell)
    return found


def value(number: float | None, scale: float = 1) -> float | None:
    """A number for JSON, which has neither NaN nor infinities."""
    return None if number is None or not math.isfinite(number) else round(scale * float(number), 6)
