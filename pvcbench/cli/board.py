"""`pvcbench board`: a static leaderboard of submissions, each measured again in part."""

from argparse import Namespace
from pathlib import Path

from pvcbench.cli.exits import Parser
from pvcbench.errors import UserError


def parser(**options) -> Parser:
    """What can be asked."""
    made = Parser(
        "pvcbench board",
        description="Makes a static leaderboard of files that `pvcbench submit` wrote. Of each submission a random "
        "sample is measured again, in all its cells, where its model is at hand; nothing is downloaded, and no code of "
        "a submission is run. Exits with 1 where a file is refused or numbers do not hold.",
        epilog="example: pvcbench board submissions/*.zip --out board",
        **options,
    )
    made.add_argument("files", type=Path, nargs="+", metavar="FILE", help="files that `pvcbench submit` wrote")
    made.add_argument("--out", type=Path, default=Path("board"), help="the folder to write (default: board)")
    made.add_argument(
        "--verify", type=int, default=1, metavar="N", help="samples of each submission to measure again (default 1)"
    )
    made.add_argument("--no-verify", action="store_true", help="measure nothing again")
    made.add_argument(
        "--seed", type=int, help="the seed that chooses them (default: a new one, which nobody can know before)"
    )
    made.add_argument(
        "--places", type=Path, nargs="+", action="extend", default=[], metavar="DIR",
        help="folders in which models and data files of submissions lie, looked for by their last name",
    )  # fmt: skip
    made.add_argument("--config-dir", type=Path, metavar="DIR", help="a folder with your own methods or tasks")
    made.add_argument("--minutes", type=float, default=30.0, help="that measuring one again may take (default 30)")
    made.add_argument("--tolerance", type=float, help="relative tolerance on another machine, as in `pvcbench verify`")
    made.add_argument(
        "--export", type=Path, metavar="DIR", help="write the scores as JSON in the schema of Every Eval Ever, too"
    )
    return made


def run(asked: Namespace) -> int:
    """Writes the board; returns 1 where a file was refused or numbers do not hold."""
    if asked.verify < 1:
        raise UserError(f"--verify must be 1 or more, not {asked.verify}; --no-verify measures nothing again")
    if not asked.minutes > 0:
        raise UserError(f"--minutes must be more than 0, not {asked.minutes:g}")
    if asked.seed is not None and asked.seed < 0:
        raise UserError(f"--seed must be 0 or more, not {asked.seed}")
    for place in [*asked.places, *([asked.config_dir] if asked.config_dir else [])]:
        if not place.expanduser().is_dir():
            raise UserError(f"there is no folder {place}: name one with --places or --config-dir")
    absent = next((path for path in asked.files if not path.expanduser().exists()), None)
    if absent is not None:  # before anything slow is imported
        raise UserError(f"there is no file {absent}: name files that `pvcbench submit` wrote")
    from pvcbench.board.make import make
    from pvcbench.board.verifying import Asked

    given = {} if asked.seed is None else {"seed": asked.seed}
    how = Asked(
        0 if asked.no_verify else asked.verify, minutes=asked.minutes, tolerance=asked.tolerance,
        places=tuple(place.expanduser().resolve() for place in asked.places),
        config_dir=asked.config_dir and asked.config_dir.expanduser().resolve(), **given,
    )  # fmt: skip
    files = [path.expanduser() for path in asked.files]
    made = make(files, asked.out.expanduser(), how, asked.export and asked.export.expanduser())
    if how.samples:
        print(f"samples were drawn with seed {how.seed}")
    if made.exported:
        print(f"{asked.export}: {len(made.exported)} files in the schema of Every Eval Ever")
    print(f"{made.page}: {len(made.entries)} submission{'s' * (len(made.entries) != 1)}")
    return 1 if made.trouble else 0
