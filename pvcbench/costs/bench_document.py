"""What every benchmark script ends with: one JSON document that says what was measured, how, and on which machine."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from pvcbench.errors import UserError
from pvcbench.runs import environment


def measured(measure: Callable[[argparse.Namespace], Mapping], options: argparse.Namespace) -> None:
    """Measures, and ends with the document; a user's error is one line and exit code 2."""
    try:
        result = measure(options)
    except UserError as error:
        print(f"{Path(sys.argv[0]).stem}: {error}", file=sys.stderr)
        sys.exit(2)
    finish(result, options.out)


def finish(result: Mapping, out: Path | None = None) -> None:
    """Prints a result with its command and its machine as the last line; with `out`, also writes it to that file."""
    whole = {"command": command(), **result, "machine": environment.describe()}
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(whole))


def command() -> str:
    """The command line that made the result, without the places where its files lie."""
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    hidden = {number + 1 for number, word in enumerate(words) if word in ("--out", "--peer", "--model", "--before")}
    return " ".join(Path(word).name if number in hidden else word for number, word in enumerate(words))
