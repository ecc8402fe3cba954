"""`pvcbench rescore`: scores stored answers again, after a metric has changed."""

from argparse import Namespace
from pathlib import Path

from pvcbench.cli.exits import Parser
from pvcbench.errors import UserError


def parser(**options) -> Parser:
    """What can be asked."""
    made = Parser(
        "pvcbench rescore",
        description="Scores stored answers again, after a metric has changed: needs neither the model nor its data. "
        "Says what would change; with --write it replaces the row files and keeps the first as rows.jsonl.bak.",
        epilog="example: pvcbench rescore results/longbench_table --write",
        **options,
    )
    made.add_argument("folder", type=Path, help="a results folder, or any folder above some runs")
    made.add_argument("--write", action="store_true", help="replace the row files (otherwise only say what changes)")
    made.add_argument("--config-dir", metavar="DIR", help="a folder with your own tasks and data, as the run had it")
    return made


def run(asked: Namespace) -> int:
    """Says, for every run, what changes."""
    from pvcbench.runs.rescore import rescore
    from pvcbench.runs.rows import run_folders

    if asked.config_dir is not None:
        from pvcbench.config.compose import folders_of

        folders_of([asked.config_dir])
    runs = run_folders(asked.folder)
    if not runs:
        raise UserError(f"there are no results under {asked.folder}: name a folder that a run wrote to")
    for folder in runs:
        print(f"{folder}: {rescore(folder, asked.write).line()}")
    return 0
