"""Progress with an estimate of the time left: a bar and scores so far on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pvcbench.stats.running import Cell, RunningMeans

BETWEEN = 15.0  # seconds between two lines where there is no terminal


def duration(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class Meter:
    """Counts samples, or `what` else; `step` tells how far into the next one the work is.

    `cells` are those whose scores are shown. `effort` is the work of all that is left, in any unit, where samples are
    not alike: the time left is then estimated by it and not by samples.
    """

    def __init__(
        self,
        total: int,
        done: int = 0,
        cells: Sequence[Cell] = (),
        running: RunningMeans | None = None,
        what: str = "samples",
        effort: int | None = None,
    ):
        self.total, self.done, self.first, self.what = total, done, done, what
        self.effort, self.spent = total - done if effort is None else effort, 0
        self.cells, self.running = cells, RunningMeans() if running is None else running
        self.started = self.spoke = time.monotonic()
        self.bar = self.live = None

    def __enter__(self):
        console = Console(stderr=True)
        if self.done:
            print(
                f"going on: {self.done} of {self.total} {self.what} are measured already", file=sys.stderr, flush=True
            )
        if console.is_terminal:
            columns = (
                TextColumn(self.what),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
            )
            self.bar = Progress(*columns, TimeRemainingColumn(elapsed_when_finished=False), console=console)
            self.task = self.bar.add_task(self.what, total=self.total, completed=self.done)
            self.live = Live(self._view(), console=console, refresh_per_second=4, transient=True)
            self.live.start()
        return self

    def __exit__(self, *_):
        if self.live is not None:
            self.live.stop()

    def step(self, part: float) -> None:
        """A share of the current sample is done."""
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done + part)

    def finish(self, samples: int, effort: int | None = None) -> None:
        """Some samples are done and on disk; `effort` is what they took of the work."""
        self.done += samples
        self.spent += samples if effort is None else effort
        if self.live is not None:
            self.bar.update(self.task, completed=self.done)
            self.live.update(self._view())
            return
        now = time.monotonic()
        if now - self.spoke > BETWEEN or self.done == self.total or self.done - samples == self.first:
            self.spoke = now
            left = (now - self.started) / max(1, self.spent) * (self.effort - self.spent)
            told = f"about {duration(left)} left" if self.done < self.total else "now what they show"
            print(f"{self.done} of {self.total} {self.what}, {told}", file=sys.stderr, flush=True)

    def _view(self) -> Group:
        """The scores so far, where there are any, above the bar."""
        return Group(scores_so_far(self.cells, self.running, self.done), self.bar) if self.running.sums else self.bar


def scores_so_far(cells: Sequence[Cell], running: RunningMeans, done: int) -> Table:
    """A line for each method and a column for each budget; a cell without a score yet is a dot."""
    means, scale, digits = running.means(), 100 if running.shares else 1, 1 if running.shares else 4
    metric = running.metric.replace("_", " ") + (", per cent" if running.shares else "")
    samples = f"{done} sample{'s' * (done != 1)}"
    table = Table(title=f"{metric}, after {samples}: not a result yet", title_justify="left")
    methods, budgets = (list(dict.fromkeys(cell[place] for cell in cells)) for place in (0, 1))
    table.add_column("method")
    for budget in budgets:
        table.add_column(budget, justify="right")
    for method in methods:
        asked = [(method, budget) for budget in budgets]
        told = [f"{means[cell] * scale:.{digits}f}" if cell in means else "." * (cell in cells) for cell in asked]
        table.add_row(Text(method), *told)
    return table
