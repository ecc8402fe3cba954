"""The command `pvcbench`, and `python -m pvcbench`, which is the same.

`pvcbench method=pvc task=needle` is short for `pvcbench run method=pvc task=needle`.
"""

import os
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import MappingProxyType, ModuleType

from pvcbench.cli import exits
from pvcbench.cli.exits import Parser, guarded, printing
from pvcbench.runs import signals

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # waiting threads spin briefly: longer starves other programs
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

SUMMARY = "pvcbench measures what a language model still knows when its KV cache is cut."
COMMANDS = {  # each a module of this package with `parser()` and `run(asked)`
    "run": "measures methods at budgets on a task; `run` may be left out",
    "list": "the names that method=, task=, model= and +experiment= take",
    "new": "writes a working example of a method, a task or data of your own",
    "check": "holds a method to the exactness properties and says in one line what is wrong",
    "calibrate": "computes the file that a method reads, for a model of yours",
    "conform": "says which published variant of a method an implementation is",
    "models": "which model architectures of transformers run, and why others do not",
    "report": "one HTML page of all results",
    "figures": "draws all figures and tables again from rows alone, or says what is stale",
    "compare": "is one method better than another at the same measured size?",
    "verify": "measures some of a stored run again and says whether its rows agree",
    "rescore": "scores stored answers again, after a metric has changed",
    "excerpts": "writes the excerpts of prompts that older runs lack",
    "submit": "packs a finished run into one file for a board",
    "board": "a static leaderboard of submissions, each measured again in part",
    "sweep": "many runs as one array of SLURM jobs: submit, status, run",
    "lm-eval": "lm-eval's own command line, with compressed caches as its model",
    "completion": "prints what a shell needs to complete these commands",
}
EXAMPLES = """
examples:
  pvcbench method=pvc task=needle
  pvcbench 'method=[pvc,h2o,streaming_llm]' task=needle 'budgets=[64,0.5]'
  pvcbench new method mine
  pvcbench COMMAND --help

your own files: YAML files and modules in a folder that --config-dir DIR names (`pvcbench new --help`). Modules of the
current folder can be imported too, by `pvcbench` as by `python -m pvcbench`.

exit codes: 0; 1 a failure, also of a method in all its cells; 2 a mistake in what was asked; 75 the time limit of a
sweep's task came near; 130 and 143 stopped by a signal
"""


def program() -> int | None:
    """What the installed command runs."""
    find_here()
    return exits.program(main)


def find_here() -> None:
    """Lets the modules of the current folder be imported, as `python -m` does; Python's -P forbids both."""
    try:
        here = os.getcwd()
    except FileNotFoundError:
        return  # a folder that was deleted has no modules
    if not sys.flags.safe_path and here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)


def former(module: str, command: str) -> int | None:
    """A command under its former name, `python -m pvcbench.MODULE`: says the new one and runs it."""
    print(f"pvcbench: `python -m pvcbench.{module}` is now `pvcbench {command}`", file=sys.stderr)
    return exits.program(lambda: main([command, *sys.argv[1:]]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line; returns 0, 1 for a failure, 2 for a user's error, 128 + signal where one stopped it."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    name, rest = (arguments[0], arguments[1:]) if arguments and arguments[0] in COMMANDS else ("run", arguments)
    if name == "run" and "list" in rest:  # behind its options, as `list` could stand before
        name, rest = "list", [one for one in rest if one != "list"]
    if arguments[:1] in (["-h"], ["--help"], ["help"]):
        with printing():
            outline().print_help()
        return 0
    chosen = module(name)
    return guarded(lambda: chosen.run(asked_of(chosen, rest)), signals.LINE if name == "run" else signals.SHORT)


def asked_of(chosen: ModuleType, arguments: Sequence[str]):
    """What a command is asked: its own reading of the arguments where it has one."""
    if hasattr(chosen, "parse"):
        return chosen.parse(arguments)
    return chosen.parser().parse_intermixed_args(arguments)


def module(name: str) -> ModuleType:
    """The module of a command."""
    return import_module(f"pvcbench.cli.{'listing' if name == 'list' else name.replace('-', '_')}")


def whole() -> Parser:
    """A parser of all commands with their options, for completion."""
    return outline({name: [module(name).parser(add_help=False)] for name in COMMANDS})


def outline(options: Mapping[str, Sequence[Parser]] = MappingProxyType({})) -> Parser:
    """A parser of all commands, which says what each does; of their options it knows those given, and imports none."""
    parser = Parser(prog="pvcbench", description=SUMMARY, epilog=EXAMPLES, formatter_class=RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(metavar="COMMAND")
    for name, told in COMMANDS.items():
        commands.add_parser(name, help=told, description=told, parents=options.get(name, []))
    return parser


if __name__ == "__main__":
    sys.exit(program())
