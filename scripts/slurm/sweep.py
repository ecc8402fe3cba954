"""Sweeps on a SLURM cluster: many runs as one array of jobs, which can be stopped at any time (docs/slurm.md).

python scripts/slurm/sweep.py submit NAME [KEY=VALUE[,VALUE...]]... [--shards N] [--dry-run]
python scripts/slurm/sweep.py status NAME [results=FOLDER]
python scripts/slurm/sweep.py run MANIFEST INDEX        # what a task of the array runs; needs no SLURM
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rich.console import Console
from rich.table import Table

from pvcbench import cli, slurm
from pvcbench.errors import UserError
from pvcbench.manifest import Line, Progress, Sweep, checked_results, lines_of


def parser_of(command: str) -> argparse.ArgumentParser:
    """The arguments of one command."""
    parser = argparse.ArgumentParser(prog=f"sweep.py {command}")
    if command == "run":
        parser.add_argument("manifest", type=Path, help="the sweep's manifest.jsonl")
        parser.add_argument("index", type=int, help="a line of it, counted from 0")
        parser.add_argument("--retry-failed", action="store_true", help="try failed cells again")
        return parser
    parser.add_argument("name", help="of the sweep: its folder is RESULTS/sweeps/NAME")
    if command == "status":
        parser.add_argument("results", nargs="?", default="results=results", metavar="results=FOLDER")
    else:
        parser.add_argument("overrides", nargs="*", help="settings; commas make one run of each value")
        parser.add_argument("--config-dir", action="append", default=[], help="a folder of your own configuration")
        parser.add_argument("--shards", type=int, default=1, help="cut the samples of every run into this many tasks")
        parser.add_argument("--array-limit", type=int, metavar="K", help="tasks that run at the same time")
        parser.add_argument("--time", default="4:00:00", help="limit of a task, which then goes on in a new turn")
        parser.add_argument("--warning", type=int, default=120, help="seconds before that limit to stop at")
        parser.add_argument("--gpus", type=int, default=1, help="for each task; 0: CPUs only")
        parser.add_argument("--sbatch", default="", metavar="OPTIONS", help="more: --sbatch='--mem=64G -p long'")
        parser.add_argument("--retry-failed", action="store_true", help="submit lines with failed cells again, too")
        parser.add_argument("--dry-run", action="store_true", help="show the array's script and submit nothing")
    return parser


def submit(asked: argparse.Namespace) -> int:
    """Checks every run, writes the manifest and submits what is not finished."""
    lines = lines_of(asked.overrides, asked.shards, asked.config_dir)
    sweep = Sweep.named(checked_results(lines), asked.name)
    resources = slurm.Resources(
        asked.time, asked.gpus, asked.array_limit, asked.warning, tuple(shlex.split(asked.sbatch))
    )
    if asked.dry_run:
        indices = [line.index for line in lines]
        print(slurm.array_script(sweep, indices, resources, asked.retry_failed, Path.cwd()), end="")
        for line in lines:
            print(f"# {line.index}: {' '.join(line.overrides)}" + (f" shard={line.shard}" if line.shard else ""))
        return 0
    submitted = slurm.submit(sweep, lines, resources, asked.retry_failed)
    rest = len(lines) - len(submitted)
    print(f"{len(submitted)} tasks submitted, {rest} lines are finished, queued or running: {sweep.path}")
    return 0


def status(asked: argparse.Namespace) -> int:
    """Shows how far every line is."""
    key, _, folder = asked.results.partition("=")
    if key != "results" or not folder:
        raise UserError(f"what is {asked.results!r}? write results=FOLDER, or nothing for results=results")
    sweep = Sweep.named(Path(folder).expanduser(), asked.name)
    lines = sweep.lines()
    try:
        states = slurm.queue(sweep)
    except UserError as error:
        print(f"pvcbench: {error}; what is queued or running is not known", file=sys.stderr)
        states = {}
    progress = [sweep.progress(line, states) for line in lines]
    console = Console(width=None if Console().is_terminal else 170)
    console.print(table_of(asked.name, lines, progress))
    for line, one in zip(lines, progress, strict=True):
        if one.reason:
            console.print(f"  line {line.index}: {one.reason}", highlight=False, soft_wrap=True)
    unknown = sum(one.cells is None for one in progress)
    if unknown:
        console.print(f"  {unknown} lines have never started: their cells are not counted yet.", highlight=False)
    return 0


def table_of(name: str, lines: Sequence[Line], progress: Sequence[Progress]) -> Table:
    """A row per line with its cells by state, and their sums."""
    same = set(lines[0].overrides).intersection(*(line.overrides for line in lines)) if len(lines) > 1 else set()
    shared = f", all with {' '.join(sorted(same))}" if same else ""
    table = Table(title=f"{name}: cells (sample x method x budget){shared}")
    heads = ("line", "run", "shard", "state", "done", "running", "failed", "missing")
    for head in heads:
        table.add_column(head, justify="left" if head in ("run", "shard", "state") else "right")
    sums = [0, 0, 0, 0]
    for line, one in zip(lines, progress, strict=True):
        settings = " ".join(override for override in line.overrides if override not in same)
        counts = ["?"] * 4
        if one.cells is not None:
            now = one.missing if one.state == "running" else 0
            numbers = [one.done, now, one.failed, one.missing - now]
            sums = [total + number for total, number in zip(sums, numbers, strict=True)]
            counts = list(map(str, numbers))
        table.add_row(str(line.index), settings, line.shard or "", one.state, *counts)
    table.add_section()
    table.add_row("", f"{len(lines)} lines", "", "", *map(str, sums))
    return table


def run(asked: argparse.Namespace) -> int:
    """Runs one line of a manifest."""
    sweep = Sweep(asked.manifest.parent)
    return slurm.run(sweep, sweep.line(asked.index), asked.retry_failed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns 0, 1 for a failure, 2 for a user's error, 75 for a run whose time was up."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    commands = {"submit": submit, "status": status, "run": run}
    if not arguments or arguments[0] not in commands:
        print(__doc__.strip(), file=sys.stderr)
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    asked = parser_of(arguments[0]).parse_intermixed_args(arguments[1:])
    return cli.guarded(lambda: commands[arguments[0]](asked))


if __name__ == "__main__":
    sys.exit(cli.program(main))
