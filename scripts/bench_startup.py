"""How long one waits for the command line: help, lists, a run that is finished already, and the figures of a run.

    python scripts/bench_startup.py
    python scripts/bench_startup.py --before ../older-checkout    # another checkout of this repository, in turn

Each side first makes a small run of its own (random weights, so seconds say nothing of a model), then its commands are
started as processes, the sides in turn, `--repeats` times. Seconds are medians of whole processes, from start to
exit; a ratio is the median of the repeats' ratios, now over before. The last line is one JSON document.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pvcbench.costs import bench_document
from pvcbench.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
RUN = ["model=random", "task.lengths=[512]", "limit=10", "threads=1", "wandb.mode=disabled"]
RUN += ["method=[h2o,snapkv,streaming_llm,random]", "budgets=[0.05,0.1,0.25,0.4,0.55,0.75]"]
COMMANDS = {  # name: its words, and the most seconds it should take
    "help": (["--help"], 0.5),
    "list": (["list"], 0.5),
    "again": ([*RUN, "results=results"], 2.0),
    "figures": (["figures", "results"], 5.0),
}


def seconds_of(tree: Path, words: list[str], folder: Path) -> float:
    """Starts a command of a checkout in a folder and waits for its end."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "pvcbench", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        check=False,
    )
    spent = time.perf_counter() - started
    if done.returncode:
        raise UserError(f"`pvcbench {' '.join(words)}` of {tree} failed: {done.stderr.strip()[-500:]}")
    return spent


def drawn_anew(folder: Path) -> None:
    """Takes away what was drawn, so that figures are drawn and not found current."""
    for path in [*folder.glob("results/*/*/figures/*"), *folder.glob("results/figures/*")]:
        if path.is_file():
            path.unlink()


def measure(options: argparse.Namespace) -> dict:
    """All commands of both sides in turn."""
    before = commit(options.before)
    trees = {"now": ROOT} | ({"before": options.before.resolve()} if options.before else {})
    spent: dict[str, dict[str, list[float]]] = {name: {side: [] for side in trees} for name in COMMANDS}
    with tempfile.TemporaryDirectory() as place:
        folders = {side: Path(place) / side for side in trees}
        for side, tree in trees.items():
            folders[side].mkdir()
            for words, _ in COMMANDS.values():  # makes the run, and warms the disk's cache
                seconds_of(tree, words, folders[side])
        for turn in range(options.repeats):
            for name, (words, _) in COMMANDS.items():
                for side in list(trees)[:: -1 if turn % 2 else 1]:
                    if name == "figures":
                        drawn_anew(folders[side])
                    spent[name][side].append(seconds_of(trees[side], words, folders[side]))
    return {"repeats": options.repeats, "run": RUN, "before": before} | {"commands": reported(spent)}


def reported(spent: dict[str, dict[str, list[float]]]) -> dict:
    """Medians, ranges and ratios of every command."""
    found = {}
    for name, sides in spent.items():
        line = {"target_s": COMMANDS[name][1]}
        for side, each in sides.items():
            line |= {f"{side}_s": round(median(each), 3), f"{side}_s_range": [round(f(each), 3) for f in (min, max)]}
        if "before" in sides:
            ratios = [now / before for now, before in zip(sides["now"], sides["before"], strict=True)]
            line["now_over_before"] = round(median(ratios), 3)
        found[name] = line
    return found


def commit(folder: Path | None) -> str | None:
    """The commit of a checkout and its day; refuses one with changes of its own."""
    if folder is None:
        return None
    told = []
    for words in (["log", "-1", "--format=%h of %cs"], ["status", "--porcelain", "--untracked-files=no"]):
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"--before {folder}: no git checkout: {done.stderr.strip()}")
        told.append(done.stdout.strip())
    if told[1]:
        raise UserError(f"--before {folder}: files were changed there since its commit: take a clean checkout")
    return told[0]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, default=None, help="an older checkout to measure in turn")
    parser.add_argument("--repeats", type=int, default=5, help="times each command is started (default: 5)")
    parser.add_argument("--out", type=Path, default=None, help="write the JSON document here as well")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    bench_document.measured(measure, options)


if __name__ == "__main__":
    main()
