"""Checks that the intervals in docs/results/analysis.md are those of the rows: python scripts/analysis_numbers.py

The tables of the runs below results/analysis are made anew from their rows. A number with its interval in the text,
such as `0.56 [0.55, 0.57]` or `46% [41, 52]`, must stand in one of them, rounded as in the text (tables by layer aside,
which have thousands of numbers). What does not is listed with the nearest intervals of its mean; the exit code is 1.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pandas as pd

from pvcbench import analyses
from pvcbench.runs.rows import load_table

ROOT = Path(__file__).resolve().parent.parent
NUMBER = r"[+-]?\d+(?:\.\d+)?"
INTERVAL = re.compile(rf"({NUMBER})(?:%| tokens| nats)? \[({NUMBER}), ({NUMBER})\]")


class Told(NamedTuple):
    """A mean with its interval, and what each may be off by for having been rounded."""

    values: tuple[float, ...]
    slack: tuple[float, ...]

    def scaled(self, factor: float) -> "Told":
        """The same in another unit."""
        return Told(*(tuple(factor * part for part in own) for own in self))

    def complement(self) -> "Told":
        """What is missing to one, in per cent."""
        mean, low, high = self.scaled(100).values
        return Told((100 - mean, 100 - high, 100 - low), self.scaled(100).slack)

    def fits(self, other: "Told", first: int = 3) -> bool:
        """Whether both may be the same numbers: mean, low and high, or the mean alone."""
        pairs = zip(self.values, other.values, self.slack, other.slack, strict=True)
        return all(abs(a - b) <= one + two + 1e-9 for a, b, one, two in [*pairs][:first])


def told(text: str) -> Iterator[tuple[str, Told]]:
    """Every number with an interval in a text."""
    for match in INTERVAL.finditer(text):
        parts = match.groups()
        slack = tuple(0.5 * 10.0 ** -len(part.partition(".")[2]) for part in parts)
        yield match[0], Told(tuple(map(float, parts)), slack)


def known(table: pd.DataFrame) -> Iterator[Told]:
    """Every mean with an interval in a table: three columns, or a text."""
    ends = [(name, f"{name}_low", f"{name}_high") for name in table] + [("mean", "low", "high")]
    for names in ends:
        if set(names) <= set(table):
            for values in table[list(names)].dropna().itertuples(index=False, name=None):
                yield Told(values, (0.0, 0.0, 0.0))
    for name in table.select_dtypes(exclude="number"):
        for text in table[name].dropna().astype(str).unique():
            yield from (found for _, found in told(text))


def tables(results: Path) -> Iterator[pd.DataFrame]:
    """Every table of every run of an analysis, from its rows."""
    for _, rows in load_table(results).groupby("folder"):
        for name, table in analyses.reporter(rows).tables(rows).items():
            if not {"layer", "distance"} & set(table) or name == "hiding":
                yield table


def complaints(text: str, found: list[Told]) -> Iterator[str]:
    """The intervals in a text that no table has, each with those that have its mean."""
    for shown, wanted in dict(told(text)).items():
        every = [one.scaled(factor) for one in found for factor in ((1, 100) if "%" in shown else (1,))]
        if "%" in shown:  # an agreement of 0.98 is a change of 2%
            every += [one.complement() for one in found]
        if not any(wanted.fits(one) for one in every):
            near = {one.values for one in every if wanted.fits(one, 1)}
            yield f"{shown}: no table has it; the mean has " + "; ".join(
                "[{1:.4g}, {2:.4g}]".format(*values)
                for values in sorted(near, key=lambda v: abs(v[1] - wanted.values[1]))[:4]
            )


def main() -> int:
    """1 where a number is not in the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "analysis")
    parser.add_argument("--doc", type=Path, default=ROOT / "docs" / "results" / "analysis.md")
    options = parser.parse_args()
    text = options.doc.read_text(encoding="utf-8")
    lines = list(complaints(text, [one for table in tables(options.results) for one in known(table)]))
    for line in lines:
        print(line)
    print(f"{len(dict(told(text)))} intervals in {options.doc.name}, {len(lines)} of them not in the tables")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
