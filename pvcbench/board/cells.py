"""The lines of the board: the cells of a submission's run, summarised from its rows and from nothing it claims."""

import math
from collections.abc import Mapping

import pandas as pd

from pvcbench import analyses
from pvcbench.board.submission import Submission
from pvcbench.plots.style import asked, measured, metric
from pvcbench.stats import floor, perplexity


def protocol(rows: pd.DataFrame) -> str:
    """How the prompts met the cache."""
    first = rows["protocol"].iloc[0]
    told = measured(rows).partition("\n")[2].removeprefix("protocol: ")
    told += ", last prompt token through the compressed cache" if first.get("refeed_last") else ""
    return told + (f", thinking: {first['thinking']}" if first.get("thinking") else "")


def tokens(rows: pd.DataFrame) -> str:
    """The lengths of the prompts."""
    least, most = int(rows["prompt_tokens"].min()), int(rows["prompt_tokens"].max())
    return f"{least:,} tokens" if least == most else f"{least:,} to {most:,} tokens"


def summary(one: Submission) -> dict:
    """What the board shows of a scored run: what was measured, and a line for each cell."""
    rows = one.rows
    table = perplexity.shown(rows)
    likely = "perplexity" in table
    bounded = not likely and rows["score"].dropna().astype(float).between(0, 1).all()
    scale, digits = (100, 1) if bounded else (1, 2)
    about = {"task": str(rows["task"].iloc[0]), "tokens": tokens(rows), "model": str(rows["model"].iloc[0])}
    about |= {"protocol": protocol(rows), "metric": "perplexity" if likely else metric(rows), "lower": likely}
    about |= {"percent": bool(bounded), "seed": int(rows["seed"].iloc[0]), "floor": floor.sentence(rows)}
    return about | {"cells": [cell(line, scale, digits) for line in table.to_dict("records")]}


def cell(line: Mapping, scale: float, digits: int) -> dict:
    """One cell: numbers to sort by, and the texts that people read."""
    score, low, high = (number(line[name], scale) for name in ("score", "low", "high"))
    error = line["error"] if isinstance(line["error"], str) else None
    known = {"method": str(line["method"]), "budget": str(line["budget"]), "asked": asked(str(line["budget"]))}
    known |= {"reference": bool(line["reference"]), "leaks": bool(line["leaks"]), "complete": bool(line["complete"])}
    known |= {"kept": number(line["kept_bytes"], 100), "entries": number(line["kept_fraction"], 100)}
    known |= {"score": score, "low": low, "high": high, "n": int(line["samples"]), "of": int(line["asked"])}
    known |= {"errors": int(line["errors"]), "error": error}
    known["difference"] = number(line.get("difference"), scale)
    return known | {"told": told(score, digits), "interval": interval(line, scale, digits)}


def number(value: object, scale: float = 1) -> float | None:
    """A finite number, or None."""
    return None if value is None or not math.isfinite(value) else round(scale * float(value), 6)


def told(value: float | None, digits: int) -> str:
    """A number in a table."""
    return "" if value is None else f"{value:.{digits}f}"


def interval(line: Mapping, scale: float, digits: int) -> str:
    """Both ends of an interval; nothing where there are too few samples for one."""
    ends = [float(line[name]) for name in ("low", "high")]
    if any(math.isnan(end) for end in ends):
        return ""
    texts = [f"{scale * end:.{digits}f}" if math.isfinite(end) else ("-∞" if end < 0 else "∞") for end in ends]
    return f"[{texts[0]}, {texts[1]}]"


def analysed(one: Submission) -> dict:
    """What is shown of an analysis or of speeds, which have no score: the table that its run ended with."""
    report = analyses.reporter(one.rows)
    table = report.tables(one.rows)["summary"]
    lines = [[entry(value) for value in line] for line in table.itertuples(index=False)]
    about = {"task": str(one.rows["task"].iloc[0]), "model": str(one.rows["model"].iloc[0])}
    return about | {"heads": [str(name).replace("_", " ") for name in table], "lines": lines, "told": report.intervals}


def entry(value: object) -> str:
    """A value of a table in words."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.4g}" if isinstance(value, float) and abs(value) < 1e4 else str(value)


def scored(one: Submission) -> bool:
    """Whether a run has scores, which the table of the board can hold."""
    return analyses.reporter(one.rows) is None
