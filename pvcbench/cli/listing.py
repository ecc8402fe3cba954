"""`pvcbench list`: the methods, tasks, models and experiments there are."""

from argparse import Namespace
from pathlib import Path

from pvcbench.cli.exits import Parser, printing


def parser(**options) -> Parser:
    """What can be asked."""
    made = Parser(
        "pvcbench list",
        description="Prints what can be chosen, with one line about each. `pvcbench models` tells of architectures.",
        epilog="example: pvcbench list --config-dir my_conf",
        **options,
    )
    made.add_argument(
        "--config-dir",
        "-cd",
        action="append",
        default=[],
        metavar="DIR",
        help="a folder of your own YAML files and modules",
    )
    return made


def run(asked: Namespace) -> int:
    """Prints what can be chosen, with the first comment of each file."""
    from pvcbench.config import compose as configuration

    folders = configuration.folders_of(asked.config_dir)
    with printing():
        for group in ("method", "task", "model", "experiment"):
            files = configuration.choices(group, folders)
            if files:
                print(f"{group}=")
            for name, path in files.items():
                width = max(map(len, files))
                print(f"  {name:<{width}}  {about(path)}")
                if limits(path):
                    print(f"  {'':<{width}}  {limits(path)}")
    return 0


def about(path: Path) -> str:
    """What a configuration file says of itself: its first comment."""
    return next((line for line in comments(path) if "@package" not in line), "")


def limits(path: Path) -> str:
    """What a configuration file says cannot be chosen by it."""
    return next((line for line in comments(path) if line.startswith("Not supported: ")), "")


def comments(path: Path) -> list[str]:
    """The comments of a configuration file, one of each line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line[2:] for line in lines if line.startswith("# ")]
