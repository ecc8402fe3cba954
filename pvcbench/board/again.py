"""Measures a random sample of an unpacked submission again, in a process of its own that downloads nothing.

    python -m pvcbench.board.again FOLDER CELLS SEED RESULT.json [--config-dir DIR] [--tolerance X]

The board calls this; it uses the functions of `pvcbench verify`, and of `pvcbench rescore` for the scores of all
stored answers. The result is a JSON file: what was compared, what differs, and where and when.
"""

import argparse
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything reads it

from pvcbench.board import completeness
from pvcbench.config import compose
from pvcbench.errors import UserError
from pvcbench.evaluation.kinds import KINDS
from pvcbench.runs import environment, rescore
from pvcbench.runs.rows import read_rows
from pvcbench.runs.verify import Verdict, verify

MOST = 40  # lines of differences that are kept


def main(arguments: list[str] | None = None) -> int:
    """Writes the result."""
    asked = parser().parse_args(arguments)
    if asked.config_dir:
        compose.folders_of([asked.config_dir])
    found = conditions() | scores(asked.folder) | extent(asked.folder)
    if asked.cells:
        found |= measured(asked)
    asked.result.write_text(json.dumps(found), encoding="utf-8")
    return 0


def measured(asked: argparse.Namespace) -> dict:
    """What measuring again found, or `problem`: why it cannot be done here."""
    lines: list[str] = []
    try:
        verdict = verify(asked.folder, asked.cells, asked.seed, asked.tolerance, say=lines.append)
        found = told(verdict, KINDS[rescore.task_of(asked.folder).kind].speeds)
    except UserError as error:
        found = {"problem": without(asked.folder, str(error))}
    return found | {"story": [without(asked.folder, line) for line in lines[:MOST]]}


def without(folder: Path, text: str) -> str:
    """A line that does not name the folder that a submission was unpacked to."""
    return text.replace(f"{folder}/", "").replace(str(folder), "the run")


def parser() -> argparse.ArgumentParser:
    """What can be asked."""
    made = argparse.ArgumentParser("python -m pvcbench.board.again")
    made.add_argument("folder", type=Path)
    made.add_argument("cells", type=int, help="0: none, only stored answers are scored again")
    made.add_argument("seed", type=int)
    made.add_argument("result", type=Path)
    made.add_argument("--config-dir")
    made.add_argument("--tolerance", type=float)
    return made


def conditions() -> dict:
    """Where and when this is measured."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    known = {"date": now, "processor": environment.processor(), "pvcbench": environment.version("pvcbench")}
    return known | {"commit": environment.commit()}


def told(verdict: Verdict, speeds: bool) -> dict:
    """A verdict as JSON; `speeds` says whether the run measures them, which never repeat and are not compared."""
    differ = [[shown(key), line] for key, lines in verdict.rows.items() for line in lines]
    differ += [[shown(key), f"another output, {line}"] for key, line in verdict.answers.items()]
    return {
        "speeds": speeds,
        "compared": verdict.compared,
        "identical": verdict.compared - len(verdict.rows) - len(verdict.answers),
        "other_outputs": len(verdict.answers),
        "agree": verdict.agree,
        "exact": verdict.tolerance is None,
        "changed": verdict.changed[:MOST],
        "machine": verdict.machine[:MOST],
        "differ": differ[:MOST],
    }


def shown(key: tuple) -> str:
    """A row's sample, method and budget in a line."""
    return " ".join(str(part) for part in key if part is not None)


def scores(folder: Path) -> dict:
    """Whether every stored score follows from its stored answer, which needs no model."""
    try:
        _, report = rescore.rescored(rescore.task_of(folder), read_rows(folder))
    except (UserError, KeyError, TypeError, ValueError, AttributeError, ImportError) as error:
        return {"scored": 0, "rescored_differ": 0, "unscored": " ".join(str(error).split())[:300]}
    return {"scored": report.answers, "rescored_differ": report.changed}


def extent(folder: Path) -> dict:
    """How many samples the run's task has."""
    try:
        return {"total": completeness.size(folder)}
    except (UserError, OSError) as error:
        return {"total": None, "unknown_total": str(error)[:300]}


if __name__ == "__main__":
    sys.exit(main())
