"""Redraws all figures and tables from rows alone: python scripts/figures.py results/

Each run's figures and tables go into its folder, those over all runs into results/figures and results/tables. With
`--check` nothing is drawn: it says which of them are stale, missing or orphaned, and exits with 1 if any is.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pandas as pd

from pvcbench import drawn, outcome, paper, store
from pvcbench.errors import UserError


def whole(rows: pd.DataFrame, results: Path) -> bool:
    """Whether a folder is one of results, not an experiment's or a run's: only there is anything drawn over runs."""
    return {Path(folder).parent.parent for folder in rows["folder"].unique()} == {results}


def draw(rows: pd.DataFrame, results: Path) -> Iterator[Path]:
    """Draws and yields the paths."""
    for folder, run in rows.groupby("folder"):
        yield from outcome.draw(run, Path(folder) / "figures")
        outcome.tables(run, Path(folder))
    if whole(rows, results):
        yield from paper.draw(rows, results)


def complaints(rows: pd.DataFrame, results: Path) -> Iterator[str]:
    """Everything below a folder that is not as it would be drawn now, in a line each."""
    folders = set()
    for folder, run in rows.groupby("folder"):
        own = Path(folder) / "figures"
        folders.add(own)
        data = drawn.data_of(run)
        yield from drawn.complaints(own, lambda stem, data=data: data)
        if not drawn.listed(own) and run["error"].isna().any():
            yield f"missing: {own} (never drawn)"
    if whole(rows, results):
        folders |= {results / "figures", results / "tables"}
        yield from paper.complaints(rows, results)
    for path in sorted(results.rglob(drawn.LIST)):
        if path.parent not in folders:  # benchmarks draw JSON files
            hashes = {Path(name).stem: drawn.source_hash(path.parent, name) for name in drawn.listed(path.parent)}
            yield from drawn.complaints(path.parent, hashes.get)


def main() -> int:
    """Draws or checks; 1 when something is not fresh, 2 when there is nothing to draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", default=Path("results"), help="a folder with runs below it")
    parser.add_argument("--check", action="store_true", help="draw nothing, say what is not fresh")
    options = parser.parse_args()
    try:
        rows = store.load(options.results)
        lines = list(complaints(rows, options.results)) if options.check else draw(rows, options.results)
        for line in lines:
            print(line)
    except UserError as error:
        print(f"figures: {error}", file=sys.stderr)
        return 2
    if options.check and lines:
        print(f"figures: {len(lines)} not fresh; python scripts/figures.py {options.results} redraws", file=sys.stderr)
    return int(options.check and bool(lines))


if __name__ == "__main__":
    from pvcbench.cli import program

    sys.exit(program(main))
