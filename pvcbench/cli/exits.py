"""Exit codes, and what ends a command early as one line on stderr."""

import contextlib
import errno
import os
import select
import signal
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from typing import NoReturn, TextIO

from pvcbench.errors import UserError
from pvcbench.runs import signals


def program(work: Callable[[], int | None]) -> int | None:
    """What a process of its own runs: a command line, and after it nothing that a signal or a closed pipe disturbs."""
    try:
        try:
            code = work()
        except SystemExit as ended:  # argparse's, after its help
            code = ended.code
        except BrokenPipeError:
            if not (closed(sys.stdout) or closed(sys.stderr)):
                raise
            code = 128 + signal.SIGPIPE
        for stream in (sys.stdout, sys.stderr):
            with printing(stream):
                pass  # it ends with what is left to be printed
        return code
    finally:
        signals.plain()


@contextlib.contextmanager
def printing(stream: TextIO | None = None) -> Iterator[None]:
    """Inside, what nobody reads any more (`| head`) ends what is being printed, without a word; then all is flushed."""
    stream = stream or sys.stdout
    try:
        yield
        stream.flush()
    except SystemExit:  # how rich ends a table that nobody reads, with nothing left to be flushed
        return
    except BrokenPipeError:
        if not closed(stream):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # Python flushes once more at its end


def closed(stream) -> bool:
    """Whether the reader of a stream has gone."""
    watch = select.poll()
    try:
        watch.register(stream.fileno(), 0)
    except (OSError, ValueError):  # not a file
        return False
    return any(event & select.POLLERR for _, event in watch.poll(0))


def guarded(work: Callable[[], int], line: str = signals.LINE) -> int:
    """The exit code of some work that signals may stop; `line` says so on stderr."""
    with signals.handled(line):
        return told(work)


def told(work: Callable[[], int], note: Callable[[str], None] = lambda line: None) -> int:
    """The exit code of some work; what ends it early becomes one line on stderr, which `note` is given too."""
    try:
        return work()
    except UserError as error:
        code, line = 2, str(error)
    except KeyboardInterrupt:
        signals.tell()
        return signals.code() or 130
    except Exception as error:
        if signals.code() is not None:  # what the signal met turned it into an exception of its own
            signals.tell()
            return signals.code()
        if isinstance(error, BrokenPipeError) and (closed(sys.stdout) or closed(sys.stderr)):
            return 128 + signal.SIGPIPE  # as of a program that the signal ends
        if os.environ.get("PVCBENCH_DEBUG"):
            raise
        text = " ".join(str(error).split())
        hint = "free some space and run the same command again" if full(error) else "PVCBENCH_DEBUG=1 shows where"
        code, line = 1, f"{type(error).__name__}: {text} ({hint})"
    print(f"pvcbench: {line}", file=sys.stderr)
    note(line)
    return code


def full(error: Exception) -> bool:
    """Whether an error says that there is no more room to write to."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Parser(ArgumentParser):
    """A parser of arguments whose mistakes are one line, as all others are."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `{self.prog} --help` says what can be asked")
