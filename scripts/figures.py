"""Redraws every run's figures and its tables from its rows alone: python scripts/figures.py results/"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pvcbench import outcome, store
from pvcbench.errors import UserError


def main() -> int:
    """Draws into <run folder>/figures and prints the paths; 2 when there is nothing to draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="?", default=Path("results"), help="a folder with runs below it")
    try:
        rows = store.load(parser.parse_args().results)
    except UserError as error:
        print(f"figures: {error}", file=sys.stderr)
        return 2
    for folder, run in rows.groupby("folder"):
        for path in outcome.draw(run, Path(folder) / "figures"):
            print(path)
        outcome.tables(run, Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
