"""What the documents say of the committed runs: a table of all of them, from their rows."""

import re
from pathlib import Path

import pvcbench
from scripts.written_page import ROOT, table


def committed(results: Path = ROOT / "results") -> str:
    """Every committed run: its experiment, task, samples, methods and budgets; .gitignore names their experiments."""
    kept = re.findall(r"^!results/(\w+)/$", (ROOT / ".gitignore").read_text(encoding="utf-8"), re.MULTILINE)
    lines = []
    every = pvcbench.load(results)
    for _, rows in every[every["experiment"].isin(kept)].groupby("folder"):
        first, own = rows.iloc[0], rows[~rows["reference"].astype(bool)]
        counts = [rows["sample"].nunique(), own["method"].nunique(), own["budget"].nunique()]
        lines.append([f"`{first['experiment']}`", f"`{first['run']}`", f"`{first['task']}`", *map(str, counts)])
    return table(["experiment", "run", "task", "samples", "methods", "budgets"], sorted(lines))
