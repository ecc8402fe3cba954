"""The page itself: the answer, the leaderboard and everything below them, in one file with its styles and script.

What is shown of single samples, curves and pictures lies in packed blocks that the script unpacks when they are asked
for. The content security policy names our script by hash and allows no connection, so that nothing a model wrote can
run or call anywhere, and the page loads nothing.
"""

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup
from rich.console import Console
from rich.progress import track

from pvcbench import analyses
from pvcbench.plots import style
from pvcbench.report import (
    answer,
    answer_text,
    leaderboard,
    needle_grid,
    packed,
    provenance,
    relative_times,
    run_pictures,
    scores,
    settings,
)
from pvcbench.report.samples import samples_of
from pvcbench.runs import prompt_excerpts
from pvcbench.runs.rows import load_table
from pvcbench.runs.stored import stored
from pvcbench.stats import significance
from pvcbench.version import VERSION

FOLDER = Path(__file__).parent
SCRIPTS = ("unpack.js", "charts.js", "samples.js", "curves.js", "leaderboard.js", "page.js")


def build(results: Path, samples: int) -> tuple[str, int]:
    """The page of all runs below a folder, and how many they are; the same results give the same page."""
    table = load_table(results)
    folders = shown(list(table.groupby("folder")), "reading runs")
    runs = {str(folder): run_of(rows, Path(str(folder)), results) for folder, rows in folders}
    groups = [(name, rows) for name, rows in settings.groups(table) if analyses.reporter(rows) is None]
    scored = [
        setting_of(name, rows, table[table["folder"].isin(rows["folder"].unique())], runs, samples)
        for name, rows in shown(groups, "comparing methods")
    ]
    scored.sort(key=lambda one: (-one["samples"], one["scores"]["lower"], -len(one["board"]), one["name"]))
    return rendered(scored, list(runs.values()), provenance.without_rows(results)), len(runs)


def shown(steps: Sequence, what: str) -> Iterable:
    """The steps one by one, with a bar while they are worked through on a terminal."""
    console = Console(stderr=True)
    return track(steps, what, console=console, transient=True, disable=not console.is_terminal)


def label(results: Path, folder: Path) -> str:
    """A run's folder as the page names it, whatever place the results lie in."""
    return (Path(results.resolve().name) / folder.relative_to(results)).as_posix()


def run_of(rows: pd.DataFrame, folder: Path, results: Path) -> dict:
    """Where the numbers of one run come from; of an analysis or of speeds also its tables and pictures."""
    known, first, place = stored(folder), rows.iloc[0], label(results, folder)
    prompts = list(prompt_excerpts.read(folder))
    origin = provenance.origin(rows, folder, known)
    found = {"run": str(first["run"]), "task": str(first["task"]), "model": str(first["model"])}
    found |= {"seed": int(first["seed"]), "place": place, "title": style.subject(rows)}
    found |= {"anchor": "origin-" + re.sub(r"[^\w.-]", "-", place), "prompts": len(prompts)}
    found |= {"samples": int(rows["sample"].nunique()), "failed": int(rows["error"].notna().sum())}
    found |= {"rows": len(rows), "cells": len(rows[["method", "budget"]].drop_duplicates())}
    found |= {"origin": origin | {"environment": provenance.pretty(origin["environment"])}}
    found |= {"absences": provenance.absences(rows, known, prompts), "tables": None}
    return found if analyses.reporter(rows) is None else found | analysed_run(rows, folder)


def setting_of(name: str, rows: pd.DataFrame, every: pd.DataFrame, runs: Mapping, samples: int) -> dict:
    """All that the page shows of one setting with scores; `every` are the rows of its runs before they were joined."""
    compared, times = significance.compared(rows), relative_times.of(every)
    run, places = scores.run_of(rows, compared), places_of(rows, runs)
    ats = answer.at_sizes(rows, compared, answer.floors_of(rows))
    leading = {
        (one.line["method"], one.line["budget"]): f"{at.target:.0%}" for at in ats for one in at.leading if at.tested
    }
    what, protocol = style.measured(rows).split("\n")
    if any(one.get("refeed_last") for one in rows["protocol"]):
        protocol += ", last prompt token fed again"
    full = answer.full_cache(compared)
    board = leaderboard.lines_of(run, compared, times, places)
    for line in board:
        line["leads"] = leading.get((line["method"], line["budget"]))
    known = {"name": name, "task": str(rows["task"].iloc[0]), "model": str(rows["model"].iloc[0])}
    known |= {"what": what, "protocol": protocol.removeprefix("protocol: "), "samples": int(rows["sample"].nunique())}
    known |= {"scores": run, "answer": answer_text.view(ats, full, run, times, places), "board": board}
    known |= {
        "full": answer_text.full_of(full, run, places),
        "runs": [runs[folder] for folder in sorted(rows["folder"].unique())],
    }
    leaders = sorted({method for method, _ in leading})
    drawn = run | {"name": name, "title": f"{what}; {protocol}", "leaders": leaders, "grid": needle_grid.of(rows)}
    known["curves"] = packed.data(drawn | {"palette": palette()})
    return known | {"cells": packed.data(samples_of(rows, excerpts_of(rows), samples))}


def places_of(rows: pd.DataFrame, runs: Mapping) -> dict[tuple, list[dict]]:
    """The runs that measured each cell."""
    cells = rows.groupby(["method", "budget"])["folder"].unique()
    return {key: [{name: runs[one][name] for name in ("run", "anchor")} for one in own] for key, own in cells.items()}


def excerpts_of(rows: pd.DataFrame) -> dict[str, dict]:
    """The excerpts of all runs by the sample's name in the joined table."""
    several, found = rows["seed"].nunique() > 1, {}
    for folder, own in rows.groupby("folder"):
        for name, excerpt in prompt_excerpts.read(Path(str(folder))).items():
            found.setdefault(f"{own['seed'].iloc[0]}/{name}" if several else name, excerpt)
    return found


def palette(steps: int = 32) -> list[str]:
    """The colours of mean scores from 0 to 1, as the figures have them."""
    colours = (style.SEQUENTIAL(step / (steps - 1)) for step in range(steps))
    return ["#" + "".join(f"{round(255 * part):02x}" for part in colour[:3]) for colour in colours]


def analysed_run(rows: pd.DataFrame, folder: Path) -> dict:
    """The summary of an analysis or of speeds, a table for each group of samples, and the pictures in its folder."""
    report = analyses.reporter(rows)
    summary, tables = report.tables(rows)["summary"], []
    for group, lines in summary.groupby("samples", sort=False) if len(summary) else ():
        known = lines.drop(columns="samples")
        texts = [["" if pd.isna(value) else cell(value) for value in line] for line in known.itertuples(index=False)]
        heads = [str(name).replace("_", " ") for name in known.columns]
        tables.append({"group": str(group), "heads": heads, "lines": texts})
    return {"tables": tables, "told": report.intervals, "figures": run_pictures.of(rows, folder)}


def cell(value: object) -> str:
    """A number with four significant digits or all before the point, or a text as it is."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def rendered(scored: list[dict], runs: list[dict], begun: list[str]) -> str:
    """The template with everything in it."""
    script = "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in SCRIPTS)
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    loader = jinja2.FileSystemLoader(FOLDER)
    options = {"autoescape": True, "undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    template = jinja2.Environment(loader=loader, **options).get_template("page.html")
    analysed = [one for one in runs if one["tables"] is not None]
    return template.render(
        version=VERSION,
        policy=f"default-src 'none'; script-src 'sha256-{allowed}'; style-src 'unsafe-inline'; img-src data: blob:",
        style=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        columns=leaderboard.COLUMNS,
        rule=answer_text.RULE,
        scored=scored,
        runs=runs,
        analysed=[one for one in analysed if one["task"] != "throughput"],
        speeds=[one for one in analysed if one["task"] == "throughput"],
        begun=begun,
    )
