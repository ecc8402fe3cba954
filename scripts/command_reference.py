"""Writes docs/reference/commands.md: the help of `pvcbench` and of each of its subcommands, as they print it.

python scripts/command_reference.py            # writes the page; a test compares
python scripts/command_reference.py --check    # says whether the page is current, and exits with 1 if not
"""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pvcbench.cli import main
from scripts.written_page import program, reference

PAGE = reference("commands")
HEAD = """# Commands: what `pvcbench` can be told

This page is written by `scripts/command_reference.py` from the commands' own help. `python -m pvcbench` is the same
command as `pvcbench`. The settings that stand behind `run` are on the page [settings](settings.md).
"""


def inner(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser, and those of its own subcommands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from dict.fromkeys(action.choices.values())


def helped(parser: argparse.ArgumentParser) -> str:
    """A parser's help, as it prints it."""
    return f"```text\n{parser.format_help().rstrip()}\n```"


def page() -> str:
    """The whole page; help is wrapped at 100 columns whatever the terminal."""
    os.environ["COLUMNS"] = "100"
    parts = [HEAD.rstrip(), helped(main.whole())]
    for name in main.COMMANDS:
        for parser in inner(main.module(name).parser()):
            parts += [f"## `{parser.prog}`", helped(parser)]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.exit(program(__doc__, PAGE, page))
