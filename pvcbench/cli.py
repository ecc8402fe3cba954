"""The command line: `python -m pvcbench method=pvc task=needle`, and `python -m pvcbench list`."""

import contextlib
import errno
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from pvcbench import stopping
from pvcbench.errors import UserError

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # waiting threads spin briefly: longer starves other programs
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

USAGE = """python -m pvcbench KEY=VALUE ...     run; e.g. method=pvc task=needle, 'method=[pvc,h2o]', 'budgets=[64,0.5]'
python -m pvcbench list              methods, tasks, models and experiments there are
python -m pvcbench models [NAME]     which architectures of transformers run, and why others do not; models --help
python -m pvcbench +experiment=NAME  a whole experiment by its name; experiment=NAME only names the results folder
python -m pvcbench --multirun ...    one run per combination of values separated by commas
Options: --config-dir DIR adds a folder of your own configuration, for `list` too; --cfg job shows the configuration
and stops.
A VALUE that names a file or folder needs no quotes but the shell's: 'task.path=my data (1)/a=b.jsonl' is taken as it
stands, as is every text that Hydra's grammar cannot read. In a multirun commas separate values: write a name that has
one in quotes of its own, "task.path='a,b.jsonl'".
Exit codes: 0; 1 a failure, also of a method in all its cells; 2 a mistake in what was asked; 130 and 143 stopped."""


class RunFailed(Exception):
    """A run of a multirun failed and has said why; carries its exit code."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 0, 1 for a failure, 2 for a user's error, 128 + signal where one stopped it."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    return guarded(lambda: dispatch(arguments))


def program(work: Callable[[], int | None] = main) -> int | None:
    """What a process of its own runs: a command line, and after it nothing that a signal or a closed pipe disturbs."""
    try:
        try:
            code = work()
        except SystemExit as ended:  # argparse's, after its help
            code = ended.code
        except BrokenPipeError:
            if not (closed(sys.stdout) or closed(sys.stderr)):
                raise
            code = 128 + signal.SIGPIPE
        for stream in (sys.stdout, sys.stderr):
            with printing(stream):
                pass  # it ends with what is left to be printed
        return code
    finally:
        stopping.plain()


@contextlib.contextmanager
def printing(stream: TextIO | None = None) -> Iterator[None]:
    """Inside, what nobody reads any more (`| head`) ends what is being printed, without a word; then all is flushed."""
    stream = stream or sys.stdout
    try:
        yield
        stream.flush()
    except SystemExit:  # how rich ends a table that nobody reads, with nothing left to be flushed
        return
    except BrokenPipeError:
        if not closed(stream):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # Python flushes once more at its end


def closed(stream) -> bool:
    """Whether the reader of a stream has gone."""
    watch = select.poll()
    try:
        watch.register(stream.fileno(), 0)
    except (OSError, ValueError):  # not a file
        return False
    return any(event & select.POLLERR for _, event in watch.poll(0))


def guarded(work: Callable[[], int], line: str = stopping.LINE) -> int:
    """The exit code of some work that signals may stop; `line` says so on stderr."""
    with stopping.handled(line):
        return told(work)


def told(work: Callable[[], int], note: Callable[[str], None] = lambda line: None) -> int:
    """The exit code of some work; what ends it early becomes one line on stderr, which `note` is given too."""
    try:
        return work()
    except UserError as error:
        code, line = 2, str(error)
    except KeyboardInterrupt:
        stopping.tell()
        return stopping.code() or 130
    except Exception as error:
        if stopping.code() is not None:  # what the signal met turned it into an exception of its own
            stopping.tell()
            return stopping.code()
        if isinstance(error, BrokenPipeError) and (closed(sys.stdout) or closed(sys.stderr)):
            return 128 + signal.SIGPIPE  # as of a program that the signal ends
        if os.environ.get("PVCBENCH_DEBUG"):
            raise
        text = " ".join(str(error).split())
        hint = "free some space and run the same command again" if full(error) else "PVCBENCH_DEBUG=1 shows where"
        code, line = 1, f"{type(error).__name__}: {text} ({hint})"
    print(f"pvcbench: {line}", file=sys.stderr)
    note(line)
    return code


def full(error: Exception) -> bool:
    """Whether an error says that there is no more room to write to."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def dispatch(arguments: list[str]) -> int:
    """Help, the list, the models, a multirun through Hydra, or one run."""
    if arguments[:1] == ["models"]:
        from pvcbench import models_cli

        return models_cli.main(arguments[1:])
    if any(argument in ("-h", "--help", "help") for argument in arguments):
        with printing():
            print(USAGE)
        return 0
    asked = parse(arguments)
    if asked.listed:
        return listing(asked)
    if asked.several:
        return multirun(asked)
    from omegaconf import OmegaConf

    from pvcbench import config as configuration

    config = configuration.composed(asked.overrides, asked.folders)
    if asked.shown:
        with printing():
            print(OmegaConf.to_yaml(config), end="")
        return 0
    return once(config)


@dataclass
class Asked:
    """What a command line asks for."""

    overrides: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)  # of the user's configuration
    shown: bool = False  # the configuration, and nothing else
    several: bool = False  # a multirun
    listed: bool = False


def parse(arguments: Sequence[str]) -> Asked:
    """The overrides, configuration folders and options of a command line."""
    asked, rest = Asked(), list(arguments)
    while rest:
        argument = rest.pop(0)
        option, equals, value = argument.partition("=")
        if option in ("--config-dir", "-cd", "--cfg", "-c"):
            if not equals and not rest:
                raise UserError(f"{argument} needs a value")
            value = value if equals else rest.pop(0)
            if option in ("--config-dir", "-cd"):
                asked.folders.append(value)
            asked.shown = asked.shown or option in ("--cfg", "-c")
        elif argument in ("--multirun", "-m"):
            asked.several = True
        elif argument == "list":
            asked.listed = True
        elif argument.startswith("-") or ("=" not in argument.lstrip("~") and not argument.startswith("~")):
            raise UserError(f"what is {argument!r}? write KEY=VALUE, or `list`, or --help")
        else:
            asked.overrides.append(argument)
    return asked


def once(config) -> int:
    """One run, its table and where its files are; 1 where some method failed in all of its cells."""
    from pvcbench import settings

    settings.check(config)
    with stopping.orderly():
        from pvcbench import receipts

        known = receipts.find(config)
        if known is not None:
            from pvcbench.result import report

            return told_of(report(config, known.folder, known.task, 0, known.asked))
        from pvcbench import runner  # takes seconds to import

        result = runner.run(config)
    return told_of(result)


def told_of(result) -> int:
    """Shows what a run came to; 1 where some method failed in all of its cells."""
    from pvcbench import console

    with printing():
        console.show(result)
    failed = result.failed
    for line in failed:
        print(f"pvcbench: {line}", file=sys.stderr)
    return 1 if failed else 0


def multirun(asked: Asked) -> int:
    """One run per combination, by Hydra's own sweeper and launcher; where one fails, the others go on.

    All of them are composed and checked before the first one starts.
    """
    import hydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from pvcbench import config as configuration
    from pvcbench import settings
    from pvcbench.manifest import combinations

    own = [one for one in asked.overrides if one.startswith(("hydra.", "hydra/", "+hydra.", "++hydra.", "+hydra/"))]
    folders = [os.path.abspath(folder) for folder in asked.folders]
    runs = []
    for run in combinations([one for one in asked.overrides if one not in own], folders):
        config = configuration.composed(run, folders)
        settings.check(config)
        runs.append(OmegaConf.to_container(config))

    parent, codes = os.getpid(), []

    def job(config):  # submitit's launchers pickle it: it may hold nothing but plain data
        configuration.folders_of(folders)
        code = told(lambda: once(OmegaConf.create(runs[config.multirun])))
        if code >= 128:
            raise KeyboardInterrupt  # stopped: no further run starts
        if code and os.getpid() != parent:
            raise RunFailed(code)
        codes.extend([code] if code else [])  # of this process, where Hydra would add words of its own

    sys.argv = [sys.argv[0], "--multirun", *own, f"+multirun={','.join(map(str, range(len(runs))))}"]
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        hydra.main(config_path=str(configuration.CONF), config_name="config", version_base="1.3")(job)()
    except RunFailed as error:
        return error.args[0]
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(configuration.explain(error)) from error
    return codes[0] if codes else 0


def listing(asked: Asked) -> int:
    """Prints what can be chosen, with the first comment of each file."""
    from pvcbench import config as configuration

    if asked.overrides or asked.several or asked.shown:
        raise UserError("`list` stands alone, or with --config-dir DIR")
    folders = configuration.folders_of(asked.folders)
    with printing():
        for group in ("method", "task", "model", "experiment"):
            files = configuration.choices(group, folders)
            if files:
                print(f"{group}=")
            for name, path in files.items():
                print(f"  {name:<{max(map(len, files))}}  {about(path)}")
    return 0


def about(path: Path) -> str:
    """What a configuration file says of itself: its first comment."""
    text = path.read_text(encoding="utf-8").splitlines()
    return next((line[2:] for line in text if line.startswith("# ") and "@package" not in line), "")


if __name__ == "__main__":
    sys.exit(program())
