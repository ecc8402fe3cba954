"""Command lines in processes forked from one that has imported everything, so that tests can start and stop many."""

import contextlib
import importlib
import io
import multiprocessing
import os
import resource
import runpy
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from pvcbench.cli import main

ROOT = Path(__file__).parents[2]


def warm() -> None:
    """Does once what every command would do first: a small run on one thread, so that no thread is there to be lost."""
    settings = ["model=random", "method=[h2o,streaming_llm]", "task.lengths=[300]", "threads=1", "wandb.mode=disabled"]
    quiet = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        main.main([*settings, "limit=1", "figures=false", f"results={folder}"])


def work(arguments, said, ready, folder, pause, file_limit) -> None:
    """Runs `python -m pvcbench` in this process, its output in a file or on a terminal."""
    replace("pvcbench.runs.signals.handled", lambda real: noted(real, ready))
    out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOCTTY)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.chdir(folder)
    if pause:
        name, marker = pause
        replace(name, lambda real: lambda *args, **options: paused(marker) or real(*args, **options))
    if file_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    sys.argv = ["pvcbench", *arguments]
    runpy.run_module("pvcbench", run_name="__main__", alter_sys=True)


def replace(name: str, made) -> None:
    """Puts what `made` makes of the real thing in its place."""
    module, _, attribute = name.rpartition(".")
    owner = importlib.import_module(module)
    setattr(owner, attribute, made(getattr(owner, attribute)))


def noted(handled, ready: str):
    """Says when signals are handled: before, it is Python's own start that they stop."""

    @contextlib.contextmanager
    def told(*arguments):
        with handled(*arguments):
            Path(ready).touch()
            yield

    return told


def paused(marker: str) -> None:
    """Says that this place is reached and waits there."""
    Path(marker).touch()
    time.sleep(60)


@dataclass
class Command:
    """A command line that runs."""

    process: multiprocessing.Process
    said: Path
    ready: Path  # there once signals are handled

    def text(self) -> str:
        """What it has said so far."""
        return self.said.read_text(encoding="utf-8") if self.said.exists() else ""

    def lines(self) -> list[str]:
        """Its lines, without the progress told to those who have no terminal."""
        return [
            line for line in self.text().splitlines() if " samples, " not in line and not line.startswith("going on: ")
        ]

    def work_for(self, seconds: float) -> float:
        """Waits until it has used so much processor time, or has ended; returns what it was last seen to have used."""
        used = 0.0
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.process.pid)
            while self.process.is_alive() and used < seconds:
                time.sleep(0.005)
                used = max(used, sum(process.cpu_times()[:2]))
        return used

    def wait_for(self, condition) -> None:
        """Waits until something holds, or it has ended."""
        wait_for(lambda: condition() or not self.process.is_alive())

    def end(self, number: int | None = None, seconds: float = 300) -> int:
        """Waits for its end, after a signal if one is named, and returns its exit code (-9 after a kill)."""
        if number is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, number)
        self.process.join(seconds)
        code = self.process.exitcode
        if code is None:
            self.process.kill()
            raise AssertionError(f"did not end: {self.text()}")
        return code


class Server:
    """Starts command lines in a folder."""

    def __init__(self, folder: Path):
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["forked_warm"])
        self.folder, self.count = folder, 0

    def start(self, *arguments, said=None, pause=None, file_limit=None) -> Command:
        """Starts `python -m pvcbench` with these arguments."""
        self.count += 1
        said = Path(said or self.folder / f"said-{self.count}.txt")
        ready = self.folder / f"ready-{self.count}"
        options = (list(arguments), str(said), str(ready), str(self.folder), pause, file_limit)
        process = self.context.Process(target=work, args=options)
        process.start()
        return Command(process, said, ready)

    def run(self, *arguments, **options) -> tuple[int, Command]:
        """Runs a command line to its end; returns its exit code and what it said."""
        command = self.start(*arguments, **options)
        return command.end(), command


def wait_for(condition, seconds: float = 300) -> None:
    """Waits until something holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("it did not happen in time")
        time.sleep(0.005)
