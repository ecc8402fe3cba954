"""Progress with an estimate of the time left: a bar on a terminal, a line now and then elsewhere."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def duration(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class Meter:
    """Counts samples; `step` tells how far into the next one the run is."""

    def __init__(self, total: int, done: int = 0):
        self.total, self.done, self.first = total, done, done
        self.started = self.spoke = time.monotonic()
        self.bar = None

    def __enter__(self):
        console = Console(stderr=True)
        if console.is_terminal:
            columns = (
                TextColumn("samples"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
            )
            self.bar = Progress(*columns, TimeRemainingColumn(elapsed_when_finished=False), console=console)
            self.bar.start()
            self.task = self.bar.add_task("samples", total=self.total, completed=self.done)
        return self

    def __exit__(self, *_):
        if self.bar is not None:
            self.bar.stop()

    def step(self, part: float) -> None:
        """A share of the current sample is done."""
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done + part)

    def finish(self, samples: int) -> None:
        """Some samples are done and on disk."""
        self.done += samples
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done)
            return
        now = time.monotonic()
        if now - self.spoke > 15 or self.done == self.total or self.done - samples == self.first:
            self.spoke = now
            left = (now - self.started) / max(1, self.done - self.first) * (self.total - self.done)
            print(f"{self.done} of {self.total} samples, about {duration(left)} left", file=sys.stderr, flush=True)
