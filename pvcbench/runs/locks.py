"""Locks of a run's folder, so that several writers never mix their rows.

A plain run holds `.lock` alone. Shards share it, and each holds one of its own beside it. Whoever must be alone with a
folder for a while, such as a shard that looks whether it was the last, says so by `.lock-alone`: a shard that begins
then waits for it, and is not refused. A lock ends with its process.
"""

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from pvcbench.config.shards import Shard
from pvcbench.errors import UserError

ALONE, TRIES = ".lock-alone", 10


def hold(path: Path, kind: int = fcntl.LOCK_EX) -> TextIO | None:
    """A file that holds a lock until it is closed, or None while another process holds one against it."""
    file = path.open("a", encoding="utf-8")
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError as error:
        file.close()
        raise UserError(
            f"{path.parent} is on a file system without locks ({error.strerror}): set results=FOLDER on another one"
        ) from error
    return file


def take(folder: Path, shard: Shard | None) -> list[TextIO]:
    """The locks of a writer; raises UserError while another one writes the same samples."""
    busy = f"another process is writing run {folder.name}: wait for it or stop it"
    wanted = [(".lock", fcntl.LOCK_EX)]
    if shard is not None:
        wanted = [(".lock", fcntl.LOCK_SH), (f".lock-{shard.label}", fcntl.LOCK_EX)]
    with contextlib.ExitStack() as held:
        locks = []
        for name, kind in wanted:
            lock = share(folder) if kind == fcntl.LOCK_SH else hold(folder / name)
            if lock is None:
                raise UserError(busy)
            locks.append(held.enter_context(lock))
        for path in sorted(folder.glob(".lock-*of*")) if shard is not None else ():
            if not path.name.endswith(f"of{shard.of}"):  # 1/2 and 1/4 have samples in common
                other = hold(path, fcntl.LOCK_SH)
                if other is None:
                    raise UserError(f"{busy}, or cut the run into as many shards as it does ({path.name})")
                other.close()
        held.pop_all()
    return locks


def share(folder: Path) -> TextIO | None:
    """A shard's share of `.lock`, after whoever is alone with the folder; None where a plain run writes it."""
    for _ in range(TRIES):
        lock = hold(folder / ".lock", fcntl.LOCK_SH)
        if lock is not None:
            return lock
        with (folder / ALONE).open("a", encoding="utf-8") as mark:
            fcntl.flock(mark, fcntl.LOCK_SH)  # at once, where nobody is alone
        time.sleep(0.05)  # between both locks of whoever is
    return None


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[bool]:
    """Whether no other process writes a run; if so, none begins to before the block ends."""
    with contextlib.ExitStack() as held:
        lock = hold(folder / ".lock")
        if lock is not None:
            held.enter_context(lock)
            mark = held.enter_context((folder / ALONE).open("a", encoding="utf-8"))
            fcntl.flock(mark, fcntl.LOCK_EX)  # others hold it for no time, since `.lock` is held here
        yield lock is not None
