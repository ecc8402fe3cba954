"""Makes a board of some files: reads and sorts out, measures again, writes the site."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pvcbench.board import agreement, every_eval_ever, site, submission, verifying
from pvcbench.board.archive import Refused
from pvcbench.board.site import Entry
from pvcbench.board.submission import Submission
from pvcbench.board.verifying import DIFFERS, Asked, State
from pvcbench.errors import UserError


@dataclass(frozen=True)
class Board:
    """A board that was made."""

    page: Path
    entries: tuple[Entry, ...]
    left_out: tuple[tuple[str, str], ...]  # files and why
    exported: tuple[Path, ...]

    @property
    def trouble(self) -> bool:
        """Whether a file was refused, or numbers do not hold."""
        doubtful = any(one.state.state == DIFFERS or one.conflicts for one in self.entries)
        return doubtful or any(not reason.startswith("the same") for _, reason in self.left_out)


def make(
    paths: Sequence[Path], out: Path, asked: Asked, export: Path | None = None, say: Callable[[str], None] = print
) -> Board:
    """Makes the board of these files; raises UserError where none of them can be read."""
    with tempfile.TemporaryDirectory(prefix="pvcbench-board-") as place:
        read, left_out = taken(paths, Path(place), say)
        kept, twice = agreement.sorted_out(read)
        for name, reason in twice:
            say(f"left out: {name}: {reason}")
        against = agreement.comparisons(kept)
        entries, exported = [], []
        for one in kept:
            state = verifying.verified(one, asked)
            made = site.entry(one, state, against[one.stem])
            say(told(made))
            entries.append(made)
        left_out += twice
        page = site.write(out, entries, left_out, asked)
        if export is not None:
            exported, unfit = every_eval_ever.export(entries, export)
            for name, reason in unfit:
                say(f"not exported: {name}: {reason}")
    return Board(page, tuple(entries), tuple(left_out), tuple(exported))


def taken(paths: Sequence[Path], place: Path, say: Callable) -> tuple[list[Submission], list[tuple[str, str]]]:
    """The files that can be read, and the others with the reason; raises UserError where there is none to show."""
    read, left_out = [], []
    for path in paths:
        try:
            one = submission.read(path, place / str(len(read) + len(left_out)))
            summarised(one)
            read.append(one)
        except Refused as error:
            if len(paths) == 1:
                raise
            reason = str(error).removeprefix(f"{path}: ")
            left_out.append((path.name, reason))
            say(f"left out: {path.name}: {reason}")
    if not read:
        raise UserError("none of these files is a submission that can be shown: see the lines above")
    return read, left_out


def summarised(one: Submission) -> None:
    """Raises Refused where the rows of a submission make no table, whatever is odd in them."""
    try:
        site.entry(one, State("", ""), ())
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise Refused(f"{one.path}: its rows make no table ({type(error).__name__}: {reason})") from error


def told(made: Entry) -> str:
    """A line about a submission."""
    conflicts = "".join(f"; {found.sentence}" for found in made.conflicts)
    lacks = f"; {made.missing[0]}" if made.missing else ""
    return f"{made.one.stem} by {made.one.manifest.by}: {', '.join(made.marks)}: {made.state.why}{lacks}{conflicts}"
