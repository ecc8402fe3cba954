"""Submissions of one run: the same one twice, and whether those of different measurers agree."""

from collections.abc import Sequence
from dataclasses import dataclass

from pvcbench.board.submission import Submission
from pvcbench.runs import row_comparison, sessions
from pvcbench.runs.row_comparison import SPEEDS, TIMES, Tolerance
from pvcbench.runs.rows import key_of, newest, read_rows


@dataclass(frozen=True)
class Comparison:
    """Two submissions of one run, compared in the rows that both have."""

    other: Submission
    common: int
    differ: tuple[tuple[str, str], ...]  # a row's sample and cell, and where it differs

    @property
    def sentence(self) -> str:
        """What came out."""
        who = f"{self.other.manifest.by} ({self.other.stem})"
        if not self.differ:
            return f"agrees with the submission of {who} in all {self.common} rows that both have"
        rows = len({row for row, _ in self.differ})
        told = f"conflict with the submission of {who}: {rows} of {self.common} rows that both have differ"
        return f"{told} (then: this one, now: the other)"


def compared(one: Submission, other: Submission) -> Comparison:
    """Compares the rows of two submissions of one run: equal after like machines, else within a tolerance."""
    first, second = ({key_of(row): row for row in newest(read_rows(side.folder))} for side in (one, other))
    common = sorted(first.keys() & second.keys(), key=lambda key: tuple(map(str, key)))
    alike = one.environment and other.environment and not sessions.differences(one.environment, other.environment)
    dtype = str(one.known["identity"]["model"].get("dtype"))
    tolerance = None if alike else Tolerance.of(dtype)
    speeds = any(row.get("repeats") for row in first.values())
    found, answers = [], []
    for key in common:
        lines, output = row_comparison.row_differences(first[key], second[key], tolerance, SPEEDS if speeds else TIMES)
        name = " ".join(str(part) for part in key if part is not None)
        found += [(name, line) for line in lines]
        if output and not lines:
            answers.append((name, "another output"))
    granted = 0.0 if tolerance is None else tolerance.answers * len(common)
    return Comparison(other, len(common), tuple(found + (answers if len(answers) > granted else [])))


def sorted_out(read: Sequence[Submission]) -> tuple[list[Submission], list[tuple[str, str]]]:
    """The submissions to show, and those left out because another one has the same rows: their file and the reason."""
    kept, out = [], []
    seen: dict[tuple, Submission] = {}
    for one in read:
        hashes = tuple(sorted((name, part.sha256) for name, part in one.manifest.files.items() if "rows" in name))
        first = seen.setdefault((one.manifest.run, hashes), one)
        if first is one:
            kept.append(one)
        elif first.sha256 == one.sha256:
            out.append((one.path.name, f"the same file as {first.path.name}"))
        else:
            out.append((one.path.name, f"the same rows as {first.path.name}, submitted by {one.manifest.by}"))
    return kept, out


def comparisons(kept: Sequence[Submission]) -> dict[str, list[Comparison]]:
    """For each submission, by its stem, how it compares with the others of its run."""
    runs: dict[str, list[Submission]] = {}
    for one in kept:
        runs.setdefault(one.manifest.run, []).append(one)
    return {one.stem: [compared(one, other) for other in runs[one.manifest.run] if other is not one] for one in kept}
