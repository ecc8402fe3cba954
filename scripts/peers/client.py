"""The near end of a peer's worker: starts it in its own environment, asks it one thing at a time, tells how it failed.

with Peer(python, folder, threads=2) as peer:
    peer.ask("prefill", press=None, length=1024)["seconds"]
"""

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from pvcbench.errors import UserError

WORKER = Path(__file__).with_name("kvpress_worker.py")
# every large block mapped on its own and given back at once: what is resident is what is in use
EXACT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}


class PeerFailed(Exception):
    """The worker answered with an error."""


class PeerDied(PeerFailed):
    """The worker is gone, killed for its memory perhaps, and takes no more requests."""


class Peer:
    """A worker in a process of its own; between requests it waits for its input and computes nothing."""

    def __init__(
        self, python: Path, model: Path, threads: int, ends: Sequence[int] = (), worker: Path = WORKER
    ) -> None:
        check_python(python)
        self.command = [str(python), str(worker), str(model), "--threads", str(threads)]
        self.command += ["--ends", *map(str, ends)] if ends else []
        self.start()

    def start(self) -> None:
        """Starts the worker and waits until its model is loaded."""
        self.said = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (closed by close)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.said}
        self.process = subprocess.Popen(self.command, text=True, encoding="utf-8", **pipes)
        self.about = self._reply()
        if not self.about.pop("ready", False):
            self.close()
            raise PeerFailed("the peer's worker did not say that it is ready")

    def ask(self, do: str, **request) -> dict:
        """One request and its reply; raises PeerFailed or PeerDied with one line that says why."""
        try:
            self.process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self.process.stdin.flush()
        except OSError as error:
            raise self._died() from error
        reply = self._reply()
        if "error" in reply:
            raise PeerFailed(f"the peer's {do} failed: {reply['error']}")
        return reply

    def _reply(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise self._died()
        try:
            return json.loads(line)
        except json.JSONDecodeError as error:
            self.close()
            raise PeerFailed(f"the peer's worker answered {line.strip()[:80]!r}, which is not JSON") from error

    def _died(self) -> PeerDied:
        code = self.process.wait()
        self.said.seek(0)
        lines = [line.strip() for line in self.said if line.strip()]
        self.close()
        return PeerDied(f"the peer's worker {ending(code, lines)}")

    def close(self) -> None:
        """Ends the worker."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.said):
            try:
                file.close()
            except BrokenPipeError:  # what was still to be sent to a worker that died
                continue

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def peak_mib(self, press: str | None, length: int) -> float:
        """Peak memory of one prefill in a new process of the same kind."""
        return peak_of([*self.command, "--peak", press or "none", str(length)])


def check_python(python: Path) -> None:
    """Refuses an environment that is not there."""
    if not Path(python).is_file():
        raise UserError(f"--peer: there is no {python}; scripts/peers/setup.sh makes the environment")


def check_methods(methods: Sequence[str], presses: Mapping[str, str], python: Path) -> None:
    """Refuses methods that have no press among these, and an environment that is not there."""
    check_python(python)
    unknown = [name for name in methods if name not in presses]
    if unknown:
        raise UserError(f"--peer: kvpress has no counterpart of {unknown[0]!r}: choose from {', '.join(presses)}")


def peak_of(command: Sequence[str]) -> float:
    """The number a process prints last; raises PeerDied where it ends without one."""
    environment = {**os.environ, **EXACT_MEMORY}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if run.returncode:
        lines = [line.strip() for line in run.stderr.splitlines() if line.strip()]
        raise PeerDied(f"a process that measures its memory {ending(run.returncode, lines)}")
    return float(run.stdout.strip().splitlines()[-1])


def ending(code: int, lines: Sequence[str]) -> str:
    """How a process ended, by its exit code and the last line it wrote."""
    if code < 0:
        return f"was killed by signal {-code}" + (", out of memory perhaps" if code == -signal.SIGKILL else "")
    return f"ended with code {code}: {lines[-1][:300] if lines else 'no message'}"
