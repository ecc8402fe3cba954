"""`python -m pvcbench.report RESULTS --out FOLDER`."""

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pvcbench.errors import UserError
from pvcbench.extras import pip_install

NEEDED = ("plotly", "jinja2")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 0, 1 for a failure, or 2 for a user's error."""
    parser = argparse.ArgumentParser(prog="python -m pvcbench.report", description="One HTML page of all results.")
    parser.add_argument("results", type=Path, nargs="?", default=Path("results"), help="a folder with runs below it")
    parser.add_argument("--out", type=Path, default=Path("report"), help="the folder for index.html (default: report)")
    parser.add_argument("--samples", type=int, default=200, help="samples of each run shown one by one (default: 200)")
    asked = parser.parse_args(arguments)
    try:
        path, runs = write(asked.results.expanduser(), asked.out.expanduser(), asked.samples)
    except UserError as error:
        print(f"pvcbench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("pvcbench: stopped; no report was written", file=sys.stderr)
        return 130
    except Exception as error:
        if os.environ.get("PVCBENCH_DEBUG"):
            raise
        text = " ".join(str(error).split())
        print(f"pvcbench: {type(error).__name__}: {text} (PVCBENCH_DEBUG=1 shows where)", file=sys.stderr)
        return 1
    print(f"{path}: {runs} run{'s' * (runs != 1)}, {path.stat().st_size / 1e6:.1f} MB")
    return 0


def write(results: Path, out: Path, samples: int) -> tuple[Path, int]:
    """Writes index.html; returns its path and how many runs it shows."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"the report needs {' and '.join(missing)}: {pip_install('report')}")
    if samples < 0:
        raise UserError(f"--samples must be 0 or more, not {samples}")
    if not results.is_dir():
        raise UserError(f"there is no folder {results}: name one that runs wrote to")
    from pvcbench.report import page

    text, runs = page.build(results, samples)
    path, temporary = out / "index.html", out / "index.html.tmp"
    try:
        out.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another folder with --out") from error
    return path, runs


if __name__ == "__main__":
    from pvcbench.cli import program

    sys.exit(program(main))
