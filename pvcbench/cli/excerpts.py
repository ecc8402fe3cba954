"""`pvcbench excerpts`: writes the excerpts of prompts that older runs lack."""

import sys
from argparse import Namespace
from pathlib import Path

from pvcbench.cli.exits import Parser


def parser(**options) -> Parser:
    """What can be asked."""
    made = Parser(
        "pvcbench excerpts",
        description="Writes samples.jsonl, the excerpts of prompts, for runs that have none: made again from their "
        "config.yaml. Where today's prompt differs from the one measured nothing is written, and the exit code is 1.",
        epilog="example: pvcbench excerpts results/needle_grid",
        **options,
    )
    made.add_argument("folders", type=Path, nargs="+", help="results folders, or any folders above some runs")
    return made


def run(asked: Namespace) -> int:
    """Returns 1 where prompts differ from what was measured."""
    from pvcbench.runs.prompt_excerpts import fill
    from pvcbench.runs.rows import load_table

    failed = 0
    for above in asked.folders:
        for folder in dict.fromkeys(load_table(above)["folder"]):
            try:
                print(f"{folder}: {fill(Path(folder))}")
            except ValueError as error:
                print(f"{folder}: {error}; nothing was written", file=sys.stderr)
                failed = 1
    return failed
