"""What the documents say of the committed runs: a table of all of them, from their rows."""

from pathlib import Path

import pvcbench
from scripts.written_page import ROOT, table


def committed(results: Path = ROOT / "results") -> str:
    """Every run: its experiment, task, samples, methods and budgets."""
    lines = []
    for _, rows in pvcbench.load(results).groupby("folder"):
        first, own = rows.iloc[0], rows[~rows["reference"].astype(bool)]
        counts = [rows["sample"].nunique(), own["method"].nunique(), own["budget"].nunique()]
        lines.append([f"`{first['experiment']}`", f"`{first['run']}`", f"`{first['task']}`", *map(str, counts)])
    return table(["experiment", "run", "task", "samples", "methods", "budgets"], sorted(lines))
