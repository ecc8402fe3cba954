"""`pvcbench compare`: is one method better than another at the same measured size?"""

from argparse import Namespace, RawDescriptionHelpFormatter
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from pvcbench.cli.exits import Parser, printing

ABOUT = """Is one method better than another at the same measured size? Paired differences, corrected by Holm.

P-values are corrected over all comparisons of the call, in all folders. A difference is the method's score minus the
other's over the samples both answered: needles as accuracy, perplexity as minus the mean NLL, so above 0 is better.
Runs of one experiment are joined as in the figures. Sizes are shares of the full cache's bytes on the same samples, and
entries in the layers that evict; where either differs by more than 1% the comparison is refused. A method that failed
on some samples is shown without a test."""
MORE = """
example:
  pvcbench compare results/methods_needle results/methods_perplexity --method ada_snapkv \\
    --against snapkv@0.1 pyramidkv@0.1 pvc@0.4
"""


def parser(**options) -> Parser:
    """What can be asked."""
    looks = {"formatter_class": RawDescriptionHelpFormatter}
    made = Parser("pvcbench compare", description=ABOUT, epilog=MORE, **looks, **options)
    made.add_argument("folders", type=Path, nargs="+", help="folders of results; one experiment each")
    made.add_argument(
        "--method", required=True, help="the method that is compared, at the size that each METHOD@BUDGET kept"
    )
    made.add_argument("--against", nargs="+", required=True, metavar="METHOD@BUDGET")
    made.add_argument("--out", type=Path, default=None, help="a CSV file to write the lines to")
    return made


def run(asked: Namespace) -> int:
    """Shows the comparisons, and writes them where asked."""
    from pvcbench.report.compare_methods import compare

    table = compare(asked.folders, asked.method, asked.against)
    if asked.out is not None:
        table.to_csv(asked.out, index=False, float_format="%.6g", lineterminator="\n")
    with printing():
        show(table)
    return 0


def percent(value: float) -> str:
    """A share; a dash where there is no full cache to be held against."""
    return "-" if pd.isna(value) else f"{value:.1%}"


def show(table: pd.DataFrame) -> None:
    """The lines on the terminal."""
    heads = ("run", "method", "against", "asked", "bytes kept", "entries kept", "n", "difference", "95% interval")
    shown = Table(*heads, "p", "p (Holm)")
    for line in table.itertuples():
        shares = [
            f"{percent(one)}, {percent(two)}"
            for one, two in ((line.kept, line.other_kept), (line.entries, line.other_entries))
        ]
        number = f"{line.samples} of {line.samples + line.lost}" if line.lost else str(line.samples)
        tests = ["no test" if pd.isna(p) else f"{p:.4f}" for p in (line.p, line.p_holm)]
        ends = "" if pd.isna(line.low) else f"[{line.low:+.4f}, {line.high:+.4f}]"
        values = f"{line.difference:+.4f}", ends, *tests
        shown.add_row(line.run, line.method, line.other, line.budget, *shares, number, *values)
    console = Console(width=170, markup=False, emoji=False)
    console.print(shown)
    console.print(
        "bytes kept: share of the full cache's; entries kept: in the layers that evict; both on the pairs' samples."
    )
