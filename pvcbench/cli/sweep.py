"""`pvcbench sweep`: many runs as one array of SLURM jobs, which can be stopped at any time (docs/guide/cluster.md)."""

import shlex
import signal
import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pvcbench.cli.exits import Parser, told
from pvcbench.cli.run import told_of
from pvcbench.errors import UserError
from pvcbench.runs import signals
from pvcbench.sweeps import slurm
from pvcbench.sweeps.manifest import Line, Progress, Sweep, checked_results, composed, lines_of
from pvcbench.sweeps.slurm import AGAIN

ABOUT = "Many runs as one array of SLURM jobs, which can be stopped at any time; docs/guide/cluster.md tells all of it."


def parser(**options) -> Parser:
    """What can be asked."""
    made = Parser("pvcbench sweep", description=ABOUT, epilog="example: pvcbench sweep status grid", **options)
    commands = made.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (add, _, about, example) in COMMANDS.items():
        epilog = f"example: pvcbench sweep {example}"
        add(commands.add_parser(name, prog=f"pvcbench sweep {name}", help=about, description=about, epilog=epilog))
    return made


def parse(arguments: Sequence[str]) -> Namespace:
    """What is asked; settings may stand before and after options."""
    whole, name = parser(), next(iter(arguments), None)
    if name not in COMMANDS:
        return whole.parse_args(list(arguments))
    add, _, about, example = COMMANDS[name]
    one = Parser(f"pvcbench sweep {name}", description=about, epilog=f"example: pvcbench sweep {example}")
    add(one)
    return one.parse_intermixed_args(list(arguments[1:]), Namespace(command=name))


def run(asked: Namespace) -> int:
    """Returns 0, or for `run` the exit code of the line: 75 where its time was up."""
    return COMMANDS[asked.command][1](asked)


def asks_submit(one: Parser) -> None:
    """The arguments of `submit`."""
    one.add_argument("name", help="name of the sweep, whose folder is RESULTS/sweeps/NAME")
    one.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="settings, results= and experiment= among them; commas make one run of each value",
    )
    one.add_argument("--config-dir", action="append", default=[], metavar="DIR", help="a folder of your own YAML files")
    one.add_argument(
        "--shards", type=int, default=1, help="cut the samples of every run into this many tasks (default 1)"
    )
    one.add_argument("--array-limit", type=int, metavar="K", help="at most K tasks at the same time")
    one.add_argument(
        "--time", default="4:00:00", help="time limit of a task, which then goes on in a new turn (default 4:00:00)"
    )
    one.add_argument(
        "--warning", type=int, default=120, help="seconds before that limit at which a task stops (default 120)"
    )
    one.add_argument("--gpus", type=int, default=1, help="GPUs of each task (default 1); 0: CPUs only")
    one.add_argument(
        "--sbatch", default="", metavar="OPTIONS", help="more options of sbatch: --sbatch='--mem=64G -p long'"
    )
    one.add_argument("--retry-failed", action="store_true", help="submit lines with failed cells again, too")
    one.add_argument("--dry-run", action="store_true", help="show the array's script and submit nothing")


def asks_status(one: Parser) -> None:
    """The arguments of `status`."""
    one.add_argument("name", help="name of the sweep, whose folder is RESULTS/sweeps/NAME")
    one.add_argument(
        "results", nargs="?", default="results=results", metavar="results=FOLDER", help="default: results=results"
    )


def asks_run(one: Parser) -> None:
    """The arguments of `run`."""
    one.add_argument("manifest", type=Path, help="the sweep's manifest.jsonl")
    one.add_argument("index", type=int, help="a line of it, counted from 0")
    one.add_argument("--retry-failed", action="store_true", help="try failed cells again")


def submit(asked: Namespace) -> int:
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


def status(asked: Namespace) -> int:
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


def run_one(asked: Namespace) -> int:
    """Runs one line of a manifest."""
    sweep = Sweep(asked.manifest.parent)
    return run_line(sweep, sweep.line(asked.index), asked.retry_failed)


class TimeUp(BaseException):
    """The time limit is near. No Exception, so that no cell takes it for a failure of its own."""


def run_line(sweep: Sweep, line: Line, again: bool = False) -> int:
    """Runs one line, as far as it is not finished; returns an exit code, AGAIN if its time was up before its end."""
    before = sweep.progress(line)
    if before.state == "finished" and not (again and before.failed):
        print(f"line {line.index} is finished: {before.done} cells, {before.failed} failed")
        return 0
    sweep.note(line, None)
    size = sweep.written(line)
    signal.signal(signal.SIGUSR1, _time_up)
    try:
        return told(partial(_measure, sweep, line, again), partial(sweep.note, line))
    except TimeUp:
        if sweep.written(line) > size:
            print("the time is up: this line continues in its next turn", file=sys.stderr)
            return AGAIN
        reason = "no sample was finished before the time limit: give more --time"
        print(f"pvcbench: {reason}", file=sys.stderr)
        sweep.note(line, reason)
        return 1
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def _measure(sweep: Sweep, line: Line, again: bool) -> int:
    from pvcbench.runs import runner

    config = composed(line)
    config.retry_failed = config.retry_failed or again
    with signals.orderly():
        result = runner.run(config, planned=partial(sweep.planned, line))
    return told_of(result)


def _time_up(*_) -> None:
    raise TimeUp


COMMANDS = {  # what each asks, what it does, and how it is told
    "submit": (
        asks_submit,
        submit,
        "checks every run, writes the manifest and submits what is not finished",
        "submit grid task=needle method=pvc,h2o seed=0,1,2 --gpus 1",
    ),
    "status": (
        asks_status,
        status,
        "shows the done, running, failed and missing cells of every run or shard",
        "status grid",
    ),
    "run": (
        asks_run,
        run_one,
        "runs one line of a manifest, as every task of the array does; exits with 75 if its time was up",
        "run results/sweeps/grid/manifest.jsonl 0",
    ),
}
