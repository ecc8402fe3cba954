"""Ctrl-C and SIGTERM: one line, the exit code a shell expects (130, 143), no traceback, and a run that can go on.

While a run works, a signal becomes an exception, so that files, locks and the progress bar are left in order; before
and after, and where something swallows the exception, the process leaves at once. Whatever happens, rows on disk stay.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE = 10.0  # seconds in which a stopped run may put its things in order
LINE = "pvcbench: stopped; the same command continues where it stopped"
SHORT = "pvcbench: stopped"
SHOW_CURSOR = "\x1b[?25h"


class Stopped(KeyboardInterrupt):
    """A signal asked this process to stop; `code` is its exit code."""

    def __init__(self, number: int):
        super().__init__(number)
        self.code = 128 + number


class _State:
    """What the handler of this process knows."""

    code: int | None = None  # of the first signal
    working = 0  # depth of `orderly` blocks
    line = LINE
    told = False


def code() -> int | None:
    """The exit code if a signal has come, else None."""
    return _State.code


def tell() -> None:
    """Says once, on stderr, that the run was stopped; past any buffers, since those may be what was interrupted."""
    if not _State.told:
        _State.told = True
        cursor = SHOW_CURSOR if os.isatty(2) else ""
        with contextlib.suppress(OSError):  # nobody reads stderr any more
            os.write(2, f"{cursor}{_State.line}\n".encode())


def _leave(*_) -> None:
    tell()
    os._exit(_State.code or 1)


def _received(number: int, frame) -> None:
    first = _State.code is None
    if first:
        _State.code = 128 + number
    if not first or not _State.working:  # a second signal means now
        _leave()
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)  # where the exception is swallowed, or putting in order hangs
    raise Stopped(number)


def _swallowed(unraisable) -> None:
    """An exception that Python could only have printed, as those raised while an object is being deleted."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt) and _State.code is not None:
        _leave()
    sys.__unraisablehook__(unraisable)


@contextlib.contextmanager
def handled(line: str = LINE) -> Iterator[None]:
    """Handles both signals inside the block, in the main thread only; one that is ignored (nohup, `&`) stays so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _State.code, _State.told, _State.line = None, False, line
    before = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGALRM)}
    hook, sys.unraisablehook = sys.unraisablehook, _swallowed
    try:
        for number, handler in before.items():
            if handler != signal.SIG_IGN:
                signal.signal(number, _leave if number == signal.SIGALRM else _received)
        yield
    finally:
        if _State.code is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        sys.unraisablehook = hook


@contextlib.contextmanager
def orderly() -> Iterator[None]:
    """Inside, a signal is an exception, and what runs can put its things in order."""
    _State.working += 1
    try:
        yield
    finally:
        _State.working -= 1


def plain() -> None:
    """From here on signals end the process as the system does by default: there is nothing left to put in order."""
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
