"""Is one method better than another at the same measured size? Paired differences, tested and corrected by Holm.

    python scripts/compare.py results/methods_needle results/methods_perplexity --method ada_snapkv \
      --against snapkv@0.1 pyramidkv@0.1 pvc@0.4

Every comparison of the call, in every folder, is one of a single family. A difference is the method's score minus the
other's over the samples both answered: needles as accuracy, perplexity as minus the mean NLL, so above 0 is better.
Runs of one experiment are joined as in the figures. Sizes are shares of the full cache's bytes on the same samples, and
entries in the layers that evict; where either differs by more than 1% the comparison is refused. A method that failed
on some samples is shown without a test.
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

SAME_SIZE = 0.01  # of the full cache's bytes, and of the prompt's entries


def compare(folders: list[Path], method: str, against: list[str]) -> pd.DataFrame:
    """One line per folder and comparison, with `p_holm` over all of them."""
    lines = []
    for folder in folders:
        for name, rows in paper.groups(store.load(folder)):
            for pair in against:
                other, _, budget = pair.partition("@")
                if not (other and budget):
                    raise UserError(f"--against {pair}: write METHOD@BUDGET, for instance {other or 'h2o'}@0.5")
                if lacking := {method, other} - set(rows["method"]):
                    known = ", ".join(sorted(set(rows["method"])))
                    raise UserError(f"{folder}: no method {' or '.join(sorted(lacking))} here: choose from {known}")
                try:
                    line = significance.versus(rows, method, other, budget)
                except ValueError as error:
                    raise UserError(f"{folder}: {error}") from error
                refuse_other_sizes(folder, line)
                lines.append({"run": name, **line})
    table = pd.DataFrame(lines)
    return table.assign(p_holm=significance.holm(table["p"]))


def refuse_other_sizes(folder: Path, line: dict) -> None:
    """Raises UserError where the two kept caches of unlike sizes, in bytes or in entries."""
    for measure, what in (("kept", "bytes"), ("entries", "entries")):
        one, two = line[measure], line[f"other_{measure}"]
        if abs(one - two) > SAME_SIZE:
            pair = f"{line['method']} and {line['other']} kept {one:.1%} and {two:.1%} of the {what}"
            raise UserError(f"{folder}: {pair} at {line['budget']}: not the same size")


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
