"""`pvcbench figures`: draws all figures and tables again from rows alone, or says what is stale."""

import sys
from argparse import Namespace
from pathlib import Path

from pvcbench.cli.exits import Parser, printing


def parser(**options) -> Parser:
    """What can be asked."""
    made = Parser(
        "pvcbench figures",
        description="Draws all figures and tables again from rows alone: each run's into its folder, those over all "
        "runs into RESULTS/figures and RESULTS/tables. A folder that nothing was ever drawn into is no fault.",
        epilog="example: pvcbench figures results --check",
        **options,
    )
    made.add_argument(
        "results", type=Path, nargs="?", default=Path("results"), help="a folder with runs below it (default: results)"
    )
    made.add_argument(
        "--check", action="store_true", help="draw nothing, say what is no longer fresh; 1 if anything is"
    )
    return made


def run(asked: Namespace) -> int:
    """Draws or checks; 1 when something is not fresh."""
    from pvcbench.report import draw_or_check
    from pvcbench.runs.rows import load_table

    rows, count = load_table(asked.results), 0
    with printing():
        for line in (
            draw_or_check.complaints(rows, asked.results) if asked.check else draw_or_check.draw(rows, asked.results)
        ):
            print(line)
            count += 1
    if asked.check and count:
        print(f"pvcbench: {count} not fresh; `pvcbench figures {asked.results}` draws them again", file=sys.stderr)
    elif asked.check:
        missing, number = draw_or_check.undrawn(rows, asked.results)
        if missing:
            told = f"nothing has been drawn yet in {len(missing)} of {number} folders"
            print(f"pvcbench: {told}; `pvcbench figures {asked.results}` draws it", file=sys.stderr)
    return int(asked.check and count > 0)
