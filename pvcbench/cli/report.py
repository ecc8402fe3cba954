"""`pvcbench report`: one HTML page of all results."""

from argparse import Namespace
from pathlib import Path

from pvcbench.cli.exits import Parser


def parser(**options) -> Parser:
    """What can be asked."""
    made = Parser(
        "pvcbench report",
        description="Writes one HTML page of all results, which needs no network and no server.",
        epilog="example: pvcbench report results --out report",
        **options,
    )
    made.add_argument(
        "results", type=Path, nargs="?", default=Path("results"), help="a folder with runs below it (default: results)"
    )
    made.add_argument("--out", type=Path, default=Path("report"), help="the folder for index.html (default: report)")
    made.add_argument("--samples", type=int, default=200, help="samples of each run shown one by one (default: 200)")
    return made


def run(asked: Namespace) -> int:
    """Writes the page and says where it is."""
    from pvcbench.report.write_page import write

    path, runs = write(asked.results.expanduser(), asked.out.expanduser(), asked.samples)
    print(f"{path}: {runs} run{'s' * (runs != 1)}, {path.stat().st_size / 1e6:.1f} MB")
    return 0
