"""Peak memory of a device, and the largest batch whose peak fits.

meter = PeakMemory(torch.device("cpu")); meter.reset(); ...; meter.peak()
"""

import ctypes
import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

PROCESS = Path("/proc/self")
MOST = 4096  # the largest batch that is searched for
TRIALS = 24  # at most: a bisection of MOST takes 12


class PeakMemory:
    """Peak bytes since the last reset: tensors on a GPU; on Linux CPUs the whole process, the interpreter included."""

    def __init__(self, device: torch.device):
        self.device = device

    def reset(self) -> None:
        """Frees what nobody holds any more and forgets the peak so far."""
        gc.collect()  # a cache and its layers hold each other
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif sys.platform == "linux":
            getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)  # glibc keeps freed pages, and counts them
            try:
                (PROCESS / "clear_refs").write_text("5")
            except OSError:
                return

    def peak(self) -> int | None:
        """The peak in bytes; None where nobody knows it."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        try:
            lines = (PROCESS / "status").read_text().splitlines() if (PROCESS / "clear_refs").exists() else []
        except OSError:
            return None
        return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), None)

    def limit(self) -> int | None:
        """Bytes that this process may hold on a GPU: what it has and what is free."""
        if self.device.type != "cuda":
            return None
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.memory_allocated(self.device) + torch.cuda.mem_get_info(self.device)[0]


@dataclass
class Search:
    """Every batch that was tried, with its peak in bytes, or None where memory ran out; what fits and what does not."""

    limit: int
    tried: list[tuple[int, int | None]] = field(default_factory=list)
    fits: int = 0
    fails: int | None = None

    @property
    def settled(self) -> bool:
        """Whether the next batch was seen not to fit."""
        return self.fails == self.fits + 1

    def add(self, batch: int, peak: int | None) -> None:
        """Takes in one trial."""
        self.tried.append((batch, peak))
        if peak is not None and peak <= self.limit:
            self.fits = max(self.fits, batch)
        else:
            self.fails = batch if self.fails is None else min(self.fails, batch)

    def next(self, most: int) -> int:
        """The batch to try next: on the line through the two largest peaks, and never outside what is open."""
        above = most + 1 if self.fails is None else self.fails
        known = sorted((batch, peak) for batch, peak in self.tried if peak is not None)[-2:]
        middle = (self.fits + above) // 2 if self.fails is not None else 2 * self.fits
        guess = middle
        if len(known) == 2 and self.tried[-1][1] is not None and len(self.tried) < TRIALS // 2:
            (first, low), (second, high) = known
            slope = (high - low) / (second - first)
            guess = int(second + (self.limit - high) // slope) if slope > 0 else middle
        guess = min(guess, 4 * self.fits)  # two small batches may mislead, and a CPU's memory is everybody's
        return min(max(guess, self.fits + 1), above - 1)


def largest_batch(peak: Callable[[int], int | None], limit: int, most: int = MOST) -> Search:
    """The largest batch whose measured peak stays within the limit, and the next, which does not.

    `peak(batch)` tries a batch and returns its peak in bytes, None where memory ran out. Peaks are linear in the batch,
    so two small ones tell about where to look; what decides is always a trial. Stops at `most`, and after TRIALS.
    """
    search, batch = Search(limit), 1
    for _ in range(TRIALS):
        search.add(batch, peak(batch))
        if search.settled or search.fits >= most:
            break
        batch = search.next(most)
    return search
