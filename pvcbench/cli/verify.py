"""`pvcbench verify`: measures some of a stored run again and compares."""

from argparse import Namespace
from pathlib import Path

from pvcbench.cli.exits import Parser
from pvcbench.errors import UserError

EXAMPLE = "example: pvcbench verify results/quickstart/a9b99b9e9929 --cells 100"
ABOUT = (
    "Measures some of a stored run again and says whether its rows agree; writes nothing into the run. On the machine "
    "of the run rows must be identical apart from times and memory, elsewhere they must agree within a tolerance. "
    "Exits with 0 if all agrees, 1 if not."
)


def parser(**options) -> Parser:
    """What can be asked."""
    made = Parser("pvcbench verify", description=ABOUT, epilog=EXAMPLE, **options)
    made.add_argument("folder", type=Path, metavar="RUN", help="the folder of one run")
    made.add_argument(
        "--cells", type=int, default=8, help="measure at least so many cells again, whole samples (default 8)"
    )
    made.add_argument("--seed", type=int, default=0, help="the seed that chooses them (default 0)")
    made.add_argument(
        "--tolerance",
        type=float,
        help="relative tolerance on another machine (default 1e-3; 1e-2 for bfloat16 and float16)",
    )
    made.add_argument("--rows-only", action="store_true", help="tell a changed identity, but do not fail for it")
    made.add_argument("--config-dir", metavar="DIR", help="a folder with your own methods or tasks, as the run had it")
    return made


def run(asked: Namespace) -> int:
    """Returns 0 if all agrees, 1 if not."""
    if asked.cells < 1:
        raise UserError(f"--cells must be 1 or more, not {asked.cells}")
    if asked.config_dir is not None:
        from pvcbench.config.compose import folders_of

        folders_of([asked.config_dir])
    from pvcbench.runs.verify import verify

    report = verify(asked.folder.expanduser(), asked.cells, asked.seed, asked.tolerance)
    if report.changed and report.agree and not asked.rows_only:
        print("the rows agree, but the identity is not as stored (--rows-only would let that pass): exit code 1")
    return 0 if report.agree and (asked.rows_only or not report.changed) else 1
