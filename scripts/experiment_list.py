"""Writes docs/reference/experiments.md: every experiment of conf/experiment, from the comments at its top.

python scripts/experiment_list.py            # writes the page; a test compares
python scripts/experiment_list.py --check    # says whether the page is current, and exits with 1 if not
"""

import sys
from itertools import groupby
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pvcbench.config import compose
from scripts.written_page import program, reference

PAGE = reference("experiments")
HEAD = """# Experiments: whole runs by name

This page is written by `scripts/experiment_list.py` from the comments at the top of the files in `conf/experiment`.
`pvcbench +experiment=NAME` runs one; any setting behind it overrides its own. Costs are estimates by the assumed
constants of the [cost model](../results/scale.md), not measured, unless a CPU is named. How experiments, figures and
published numbers belong together stands in the guide's page on [experiments](../guide/experiments.md).
"""


def header(name: str) -> list[str]:
    """The comment at the top of an experiment's file, without its first line, which is Hydra's."""
    lines = (compose.CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return [line[2:] for line in lines[1:end]]


def part(name: str) -> str:
    """What the page says of one experiment: its header as text, with the commands in it as blocks."""
    parts = [f"## `{name}`"]
    for command, lines in groupby(header(name), lambda line: line.startswith("  ")):
        text = "\n".join(line.removeprefix("  ") for line in lines).strip()
        parts.append(f"```sh\n{text}\n```" if command else text)
    return "\n\n".join(parts)


def page() -> str:
    """The whole page."""
    return "\n\n".join([HEAD.rstrip(), *(part(name) for name in compose.options("experiment"))]) + "\n"


if __name__ == "__main__":
    sys.exit(program(__doc__, PAGE, page))
