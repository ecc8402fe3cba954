"""The table at the end of a run, for people."""

import math

from rich.console import Console
from rich.table import Table

from pvcbench.runner import Result


def percent(value: float, sign: bool = False) -> str:
    """A share as per cent."""
    return "" if value is None or math.isnan(value) else f"{100 * value:{'+' if sign else ''}.1f}"


def interval(low: float, high: float, sign: bool = False) -> str:
    """Both ends of an interval."""
    return "" if math.isnan(low) else f"[{percent(low, sign)}, {percent(high, sign)}]"


def show(result: Result) -> None:
    """Prints the summary of a run and the paths of its figures, rows and W&B run."""
    console = Console(width=None if Console().is_terminal else 130)
    primary = next((name for metrics in result.rows["metrics"] for name in metrics), "score")
    table = Table(title=f"{result.rows['task'].iloc[0]}, {result.rows['model'].iloc[0]}: 95% intervals, per cent")
    for name in ("method", "asked", "cache kept", "MiB", "n", primary, "interval", "minus full", "interval"):
        table.add_column(name, justify="left" if name in ("method", "asked") else "right")
    notes = []
    for line in result.summary.itertuples():
        if not line.samples:
            table.add_row(line.method, line.budget, "-", "-", "0", "-", "", "-", "")
            notes.append(f"{line.method} at {line.budget}: {line.error}")
            continue
        sizes = [f"{percent(line.kept_fraction)}%", f"{line.mib:.1f}", str(line.samples)]
        paired = [percent(line.difference, True), interval(line.difference_low, line.difference_high, True)]
        table.add_row(line.method, line.budget, *sizes, percent(line.score), interval(line.low, line.high), *paired)
        if line.errors:
            notes.append(f"{line.method} at {line.budget}: {line.errors} samples failed: {line.error}")
    console.print(table)
    for note in notes:
        console.print(f"  {note}", highlight=False, soft_wrap=True)
    if result.summary["difference"].notna().any() and result.summary["difference_low"].isna().all():
        console.print("  Fewer than ten clusters: no interval for differences.", highlight=False)
    if not result.measured:
        console.print("This run was finished before; nothing was measured again.", highlight=False)
    for name, value in (
        ("figure", result.figures[0] if result.figures else None),
        ("rows", result.folder / "rows.jsonl"),
        ("W&B", result.tracked),
    ):
        if value is not None:
            console.print(f"{name:<8}{value}", highlight=False, soft_wrap=True)
