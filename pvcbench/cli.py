"""The command line: `python -m pvcbench method=pvc task=needle`, and `python -m pvcbench list`."""

import errno
import os
import sys
from collections.abc import Callable, Sequence

from pvcbench import stopping
from pvcbench.errors import UserError

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # waiting threads spin briefly: longer starves other programs
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

USAGE = """python -m pvcbench KEY=VALUE ...     run; e.g. method=pvc task=needle, 'method=[pvc,h2o]', 'budgets=[64,0.5]'
python -m pvcbench list              methods, tasks, models and experiments there are
python -m pvcbench +experiment=NAME  a whole experiment by its name; experiment=NAME only names the results folder
python -m pvcbench --multirun ...    one run per combination of values separated by commas
Options: --config-dir DIR adds a folder of your own configuration; --cfg job shows the configuration and stops."""


class RunFailed(Exception):
    """A run of a multirun failed and has said why; carries its exit code."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 0, 1 for a failure, 2 for a user's error, 128 + signal where one stopped it."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    return guarded(lambda: dispatch(arguments))


def program(work: Callable[[], int] = main) -> int:
    """What a process of its own runs: a command line, and after it nothing that a signal could disturb."""
    try:
        return work()
    finally:
        stopping.plain()


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
    """Help, the list, a multirun through Hydra, or one run."""
    if any(argument in ("-h", "--help", "help") for argument in arguments):
        print(USAGE)
        return 0
    if arguments == ["list"]:
        return listing()
    if "--multirun" in arguments or "-m" in arguments:
        return multirun(arguments)
    from omegaconf import OmegaConf

    from pvcbench import config as configuration

    overrides, folders, show = parse(arguments)
    config = configuration.composed(overrides, folders)
    if show:
        print(OmegaConf.to_yaml(config), end="")
        return 0
    return once(config)


def parse(arguments: Sequence[str]) -> tuple[list[str], list[str], bool]:
    """Overrides, configuration folders, and whether to show the configuration only."""
    overrides, folders, show, rest = [], [], False, list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument in ("--config-dir", "-cd", "--cfg", "-c"):
            if not rest:
                raise UserError(f"{argument} needs a value")
            value = rest.pop(0)
            folders += [value] if "d" in argument else []
            show = show or "d" not in argument
        elif argument.startswith("--config-dir="):
            folders.append(argument.partition("=")[2])
        elif argument.startswith("-") or "=" not in argument.lstrip("~"):
            raise UserError(f"what is {argument!r}? write KEY=VALUE, or `list`, or --help")
        else:
            overrides.append(argument)
    for folder in folders:
        sys.path.insert(0, os.path.abspath(folder))
    return overrides, folders, show


def once(config) -> int:
    """One run, its table and where its files are."""
    from pvcbench import console, runner

    with stopping.orderly():
        result = runner.run(config)
    console.show(result)
    return 0


def multirun(arguments: list[str]) -> int:
    """One run per combination, by Hydra's own sweeper and launcher; where one fails, the others go on."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from pvcbench import config as configuration

    rest, names = configuration.split_names(arguments)
    name = configuration.composed(names).experiment if names else None  # a bad one is refused before anything runs

    def job(config):  # submitit's launchers pickle it: it may hold nothing but text
        config.experiment = name or config.experiment
        code = told(lambda: once(config))
        if code >= 128:
            raise KeyboardInterrupt  # stopped: no further run starts
        if code:
            raise RunFailed(code)

    sys.argv = [sys.argv[0], *rest]
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        hydra.main(config_path=str(configuration.CONF), config_name="config", version_base="1.3")(job)()
    except RunFailed as error:
        return error.args[0]
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(configuration.explain(error)) from error
    return 0


def listing() -> int:
    """Prints what can be chosen, with the first comment of each file."""
    from pvcbench import config as configuration

    for group in ("method", "task", "model", "experiment"):
        names = configuration.options(group)
        if names:
            print(f"{group}=")
        for name in names:
            text = (configuration.CONF / group / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
            about = next((line[2:] for line in text if line.startswith("# ") and "@package" not in line), "")
            print(f"  {name:<{max(map(len, names))}}  {about}")
    return 0


if __name__ == "__main__":
    sys.exit(program())
