"""Where a run's numbers come from, and what of it is missing: configuration, machine, command, absences."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from pvcbench.errors import UserError
from pvcbench.plots.style import asked
from pvcbench.report import command_again
from pvcbench.runs.stored import stored

SAMPLES = 5  # of those with missing cells that are named


def origin(rows: pd.DataFrame, folder: Path, known: Mapping) -> dict:
    """The texts that say how a run came to be."""
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    environment = folder / "environment.json"
    command, problem = command_again.command(known)
    return {
        "config": text,
        "environment": environment.read_text(encoding="utf-8") if environment.is_file() else None,
        "command": command,
        "problem": problem,
        "prompts": int(rows["prompt_sha256"].nunique()),
        "rows": len(rows),
    }


def absences(rows: pd.DataFrame, known: Mapping, excerpts: Sequence[str]) -> list[str]:
    """What has no score and why, which cells and samples that were asked for have no rows: a sentence each."""
    found = [*failed(rows), *lacking(rows, known)]
    measured, cells = set(rows["sample"]), rows[["method", "budget"]].drop_duplicates()
    parts = rows.groupby("sample").size()
    partial = parts[parts < len(cells)]
    if len(partial):
        names = ", ".join(map(str, partial.index[:SAMPLES])) + (" ..." if len(partial) > SAMPLES else "")
        found.append(f"{len(partial)} of {len(measured)} samples lack rows of some of the {len(cells)} cells: {names}")
    waiting = [name for name in excerpts if name not in measured]
    if waiting:
        found.append(f"{len(waiting)} of {len(waiting) + len(measured)} samples asked for are not measured yet")
    limit = (known.get("config") or {}).get("limit")
    if limit is not None and limit > len(measured):
        found.append(f"limit={limit} asked for more samples than the {len(measured)} measured (or than the task has)")
    return found


def failed(rows: pd.DataFrame) -> list[str]:
    """Error rows by cell and reason."""
    found, sizes = [], rows.groupby(["method", "budget"], dropna=False).size()
    broken = rows[rows["error"].notna()]
    for (method, budget, reason), cell in broken.groupby(["method", "budget", "error"], sort=False, dropna=False):
        where = f"{method} at {asked(budget)}" if isinstance(method, str) else "observations"
        total = len(rows) if not isinstance(method, str) else sizes[method, budget]
        found.append(f"{where}: {len(cell)} of {total} rows have no score: {reason}")
    return found


def lacking(rows: pd.DataFrame, known: Mapping) -> list[str]:
    """Methods and budgets that the configuration asks for and no row has."""
    if rows["method"].isna().all():
        return []
    identity, cells = known["identity"], rows[["method", "budget"]].drop_duplicates()
    budgets = {name: set(own["budget"]) for name, own in cells.groupby("method")}
    found = [f"{name}: no row at all" for name in identity.get("methods", {}) if name not in budgets]
    references = set(rows[rows["reference"].astype(bool)]["method"])
    for name in sorted(set(budgets) - references):
        missing = [budget for budget in identity.get("budgets", []) if budget not in budgets[name]]
        if missing and len(missing) < len(identity["budgets"]):
            found.append(f"{name}: no row at {', '.join(map(asked, missing))}")
    return found


def without_rows(results: Path) -> list[str]:
    """Folders of runs that were begun and have no row yet."""
    begun = sorted({path.parent for path in results.rglob("config.yaml")})
    return [str(folder.relative_to(results)) for folder in begun if stored_run(folder) and not has_rows(folder)]


def has_rows(folder: Path) -> bool:
    return any(path.stat().st_size for path in folder.glob("rows*.jsonl"))


def stored_run(folder: Path) -> bool:
    """Whether a folder's config.yaml is a run's."""
    try:
        stored(folder)
    except UserError:
        return False
    return True


def pretty(text: str | None) -> str | None:
    """JSON indented for reading; as it is where it is none."""
    try:
        return None if text is None else json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except ValueError:
        return text
