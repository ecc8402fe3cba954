"""What the page shows of a run with scores: the cells of its leaderboard and curves, as `stats` summarises them."""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from pvcbench import likelihood, stats
from pvcbench.console import interval, number, scale_of
from pvcbench.looks import DASHED, DOTTED, LEAKING, MIXED, asked, budgets_of, looks, metric, reach, size_label, subject
from pvcbench.needle_figures import needle_shares

SYMBOLS = {"*": "star", "o": "circle", "s": "square", "^": "triangle-up", "X": "x", "D": "diamond", "P": "cross"}
SYMBOLS |= {"v": "triangle-down", "p": "pentagon", "h": "hexagon", "d": "diamond-tall", "<": "triangle-left"}
SYMBOLS |= {">": "triangle-right", "x": "x-thin-open"}
DASHES = {"-": "solid", DASHED: "dash", DOTTED: "dot", MIXED: "dashdot"}
SIZES = ("mib", "prefill_s", "kept_entries")


def run_of(rows: pd.DataFrame) -> dict:
    """One run as the page needs it: what it is, its methods' looks, and the cells of each of its parts."""
    summary = likelihood.shown(rows)
    perplexity = "perplexity" in summary
    scale, digits = (1, 2) if perplexity else scale_of(rows)
    parts = [{"name": "all samples", "cells": cells_of(summary, rows, scale)}]
    if not perplexity and rows["stratum"].nunique() > 1:
        table = stats.breakdown(rows)
        for (kind, part), lines in table[table["kind"] != "all"].groupby(["kind", "part"], sort=False):
            parts.append({"name": f"{kind} {part}", "cells": cells_of(lines, rows, scale)})
    name = "perplexity" if perplexity else metric(rows)
    return {
        "run": str(rows["run"].iloc[0]),
        "experiment": str(rows["experiment"].iloc[0]),
        "task": str(rows["task"].iloc[0]),
        "model": str(rows["model"].iloc[0]),
        "seed": int(rows["seed"].iloc[0]),
        "samples": int(rows["sample"].nunique()),
        "title": subject(rows),
        "metric": name + (", %" if scale == 100 else ""),
        "difference": "NLL minus full, nats per token" if perplexity else "minus full",
        "lower": perplexity,
        "digits": digits,
        "scale": scale,
        "bounded": not perplexity and scale == 100,
        "size": size_label(rows),
        "methods": methods_of(rows),
        "budgets": [{"budget": budget, "asked": asked(budget)} for budget in budgets_of(rows)],
        "parts": parts,
    }


def methods_of(rows: pd.DataFrame) -> list[dict]:
    """The methods, the reference first, with the colour, marker and line that the figures give them."""
    found, errors = [], rows.groupby("method")["error"]
    for name, (colour, marker, line) in looks(rows["method"].unique()).items():
        own = rows["method"] == name
        known = {"name": name, "reference": bool(rows[own]["reference"].any()), "reach": reach(errors.get_group(name))}
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
        cell = {name: line[name] for name in ("method", "budget", "reference", "samples", "errors", "error")}
        cell["error"] = cell["error"] if isinstance(cell["error"], str) else None  # pandas makes None NaN
        cell |= {"asked": asked(line["budget"]), "kept": value(line["kept_fraction"], 100)}
        cell |= {name: value(line[name]) for name in SIZES}
        cell |= {name: value(line[name], scale) for name in ("score", "low", "high")}
        names = [f"nll_{name}" if likely else name for name in ("difference", "difference_low", "difference_high")]
        for shown, name in zip(("difference", "difference_low", "difference_high"), names, strict=True):
            cell[shown] = value(line.get(name), 1 if likely else scale)
        cell |= {"decode_s": value(decoding.get(key)), "needle": [value(share, 100) for share in layers.get(key, ())]}
        found.append(cell)
    return found


def value(number: float | None, scale: float = 1) -> float | None:
    """A number for JSON, which has no NaN."""
    return None if number is None or math.isnan(number) else round(scale * float(number), 6)


def board(run: Mapping) -> dict:
    """The leaderboard of a run: a line per method, a column per size asked for, the texts of every cell."""
    budgets, cells = [entry["budget"] for entry in run["budgets"]], run["parts"][0]["cells"]
    best = {budget: best_of(run, [cell for cell in cells if cell["budget"] == budget]) for budget in budgets}
    lines = []
    for method in run["methods"]:
        own = {cell["budget"]: cell for cell in cells if cell["method"] == method["name"]}
        if method["reference"]:
            entries = [spell(run, next(iter(own.values())), False)]
        else:
            entries = [spell(run, own.get(budget), best[budget] == method["name"]) for budget in budgets]
        lines.append({**method, "entries": entries})
    return {"budgets": run["budgets"], "lines": lines}


def best_of(run: Mapping, cells: list[dict]) -> str | None:
    """The method with the best score among some cells; the full cache and what leaks are references and left out."""
    ranked = [cell for cell in cells if not cell["reference"] and cell["method"] not in LEAKING]
    scored = [cell for cell in ranked if cell["score"] is not None]
    order = sorted(scored, key=lambda cell: cell["score"] if run["lower"] else -cell["score"])
    return order[0]["method"] if len(order) > 1 and order[0]["score"] != order[1]["score"] else None


def spell(run: Mapping, cell: Mapping | None, best: bool) -> dict:
    """The texts of a leaderboard's cell, and the number it is sorted by (none: last)."""
    if cell is None or cell["score"] is None:
        return {"score": None, "why": "not asked" if cell is None else absent(cell)}
    digits, fine = run["digits"], 3 if run["lower"] else run["digits"]
    ends = (math.nan if cell[name] is None else cell[name] for name in ("low", "high"))
    wide = (math.nan if cell[name] is None else cell[name] for name in ("difference_low", "difference_high"))
    failed = f", {cell['errors']} without a score" if cell["errors"] else ""
    return {
        "score": number(cell["score"], 1, digits),
        "sort": -cell["score"] if run["lower"] else cell["score"],
        "interval": interval(*ends, 1, digits) or "no interval",
        "difference": number(cell["difference"], 1, fine, True),
        "difference_interval": interval(*wide, 1, fine, True),
        "size": f"{cell['kept']:.1f}% kept, {cell['mib']:.1f} MiB",
        "n": f"n = {cell['samples']}{failed}",
        "best": best,
    }


def absent(cell: Mapping) -> str:
    """Why a cell has no score, short."""
    end = reach([cell["error"]])
    return f"out of reach (below {end:.1f}%)" if end is not None else f"no score: {cell['error'] or 'none was given'}"
