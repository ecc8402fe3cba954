"""Is one method better than another at the same measured size? Paired differences, tested and corrected by Holm.

    python scripts/compare.py results/methods_needle results/methods_perplexity --method ada_snapkv \
      --against snapkv@0.1 pyramidkv@0.1 pvc@0.4

Every comparison of the call, in every folder, is one of a single family. A difference is the method's score minus the
other's over the samples both answered: needles as accuracy, perplexity as minus the mean NLL, so above 0 is better.
Runs of one experiment are joined as in the figures. Sizes that differ by more than 1% of the prompt are refused.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pandas as pd
from rich.console import Console
from rich.table import Table

from pvcbench import paper, significance, store
from pvcbench.errors import UserError

SAME_SIZE = 0.01  # of the prompt


def compare(folders: list[Path], method: str, against: list[str]) -> pd.DataFrame:
    """One line per folder and comparison, with `p_holm` over all of them."""
    lines = []
    for folder in folders:
        for name, rows in paper.groups(store.load(folder)):
            for pair in against:
                other, _, budget = pair.partition("@")
                try:
                    line = significance.versus(rows, method, other, budget)
                except ValueError as error:
                    raise UserError(f"{folder}: {error}") from error
                if abs(line["kept"] - line["other_kept"]) > SAME_SIZE:
                    sizes = f"{line['kept']:.1%} and {line['other_kept']:.1%}"
                    raise UserError(f"{folder}: {method} and {other} kept {sizes} at {budget}: not the same size")
                lines.append({"run": name, **line})
    table = pd.DataFrame(lines)
    return table.assign(p_holm=significance.holm(table["p"]))


def show(table: pd.DataFrame) -> None:
    """The lines on the terminal."""
    shown = Table("run", "method", "against", "asked", "kept", "n", "difference", "95% interval", "p", "p (Holm)")
    for line in table.itertuples():
        sizes = f"{line.kept:.1%}, {line.other_kept:.1%}"
        values = (
            f"{line.difference:+.4f}",
            f"[{line.low:+.4f}, {line.high:+.4f}]",
            f"{line.p:.4f}",
            f"{line.p_holm:.4f}",
        )
        shown.add_row(line.run, line.method, line.other, line.budget, sizes, str(line.samples), *values)
    Console(width=150).print(shown)


def main() -> int:
    """Exit code 2 for a user's error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="folders of results; one experiment each")
    parser.add_argument("--method", required=True)
    parser.add_argument("--against", nargs="+", required=True, metavar="METHOD@BUDGET")
    parser.add_argument("--out", type=Path, default=None, help="a CSV file to write the lines to")
    options = parser.parse_args()
    try:
        table = compare(options.folders, options.method, options.against)
    except UserError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    show(table)
    if options.out is not None:
        table.to_csv(options.out, index=False, float_format="%.6g", lineterminator="\n")
    return 0


if __name__ == "__main__":
    from pvcbench.cli import program

    sys.exit(program(main))
