"""The page itself: data of all runs, and a template that holds it with styles, scripts and plotly.js.

Its content security policy names our scripts by hash and allows no connection, so that nothing a model wrote can run
or call anywhere, and the page loads nothing.
"""

import base64
import hashlib
import json
import re
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from pvcbench import analyses
from pvcbench.plots.style import subject
from pvcbench.report import pictures, provenance
from pvcbench.report.samples import samples_of
from pvcbench.report.scores import board, run_of
from pvcbench.runs import prompt_excerpts
from pvcbench.runs.rows import load_table
from pvcbench.runs.stored import stored
from pvcbench.version import VERSION

FOLDER = Path(__file__).parent
SCRIPTS = ("charts.js", "samples.js", "page.js")
UNTRUSTED = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026"}  # no end of a script, no start of a comment


def build(results: Path, samples: int) -> tuple[str, int]:
    """The page of all runs below a folder, and how many they are; the same results give the same page."""
    table = load_table(results)
    scored, analysed = [], []
    for name, rows in table.groupby("folder", sort=True):
        folder = Path(str(name))
        kind = scored if analyses.reporter(rows) is None else analysed
        kind.append(entry(rows, folder, label(results, folder), samples))
    scored.sort(key=lambda one: one["grid"] is None)  # those with most to see come first
    begun = provenance.without_rows(results)
    data = {"runs": [{key: one[key] for key in ("scores", "samples", "grid", "about")} for one in scored]}
    return rendered(scored, analysed, begun, data), len(scored) + len(analysed)


def label(results: Path, folder: Path) -> str:
    """A run's folder as the page names it, whatever place the results lie in."""
    return (Path(results.resolve().name) / folder.relative_to(results)).as_posix()


def entry(rows: pd.DataFrame, folder: Path, place: str, samples: int) -> dict:
    """All that the page shows of one run."""
    stored_run = stored(folder)
    prompts = prompt_excerpts.read(folder)
    origin = provenance.origin(rows, folder, stored_run)
    first = rows.iloc[0]
    about = {"run": str(first["run"]), "experiment": str(first["experiment"]), "task": str(first["task"])}
    about |= {"model": str(first["model"]), "seed": int(first["seed"]), "place": place, "title": subject(rows)}
    about |= {"anchor": "origin-" + re.sub(r"[^\w.-]", "-", place)}
    about |= {"samples": int(rows["sample"].nunique()), "failed": int(rows["error"].notna().sum())}
    about |= {"rows": len(rows), "cells": len(rows[["method", "budget"]].drop_duplicates()), "prompts": len(prompts)}
    known = {"about": about, "origin": origin | {"environment": provenance.pretty(origin["environment"])}}
    known["absences"] = provenance.absences(rows, stored_run, list(prompts))
    if analyses.reporter(rows) is not None:
        return known | analysed_run(rows, folder)
    scores = run_of(rows)
    known |= {"scores": scores, "board": board(scores), "grid": pictures.needle_grid(rows)}
    return known | {"samples": samples_of(rows, prompts, samples)}


def analysed_run(rows: pd.DataFrame, folder: Path) -> dict:
    """The summary of an analysis or of speeds, a table for each group of samples, and the pictures in its folder."""
    report = analyses.reporter(rows)
    summary, tables = report.tables(rows)["summary"], []
    for group, lines in summary.groupby("samples", sort=False) if len(summary) else ():
        shown = lines.drop(columns="samples")
        texts = [["" if pd.isna(value) else cell(value) for value in line] for line in shown.itertuples(index=False)]
        heads = [str(name).replace("_", " ") for name in shown.columns]
        tables.append({"group": str(group), "heads": heads, "lines": texts})
    return {"tables": tables, "told": report.intervals, "figures": pictures.own_figures(rows, folder)}


def cell(value: object) -> str:
    """A number with four significant digits or all before the point, or a text as it is."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def embedded(data: object) -> Markup:
    """Data as JSON that may stand in a script element, whatever text is in it."""
    return Markup(json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":")).translate(UNTRUSTED))


def rendered(scored: list[dict], analysed: list[dict], begun: list[str], data: dict) -> str:
    """The template with everything in it."""
    scripts = [get_plotlyjs(), *((FOLDER / name).read_text(encoding="utf-8") for name in SCRIPTS)]
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{one}'" for one in hashes)
    loader = jinja2.FileSystemLoader(FOLDER)
    options = {"autoescape": True, "undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    template = jinja2.Environment(loader=loader, **options).get_template("page.html")
    return template.render(
        version=VERSION,
        policy=f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:",
        style=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
        scripts=[Markup(script) for script in scripts],
        data=embedded(data),
        scored=scored,
        analysed=[one for one in analysed if one["about"]["task"] != "throughput"],
        speeds=[one for one in analysed if one["about"]["task"] == "throughput"],
        begun=begun,
    )
