"""Shared by all tests: one thread, no network, and the engine's shape annotations checked at run time."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from jaxtyping import install_import_hook

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported

install_import_hook(["pvcbench.engine", "pvcbench.policy"], "beartype.beartype")
torch.set_num_threads(1)


@pytest.fixture
def inference():
    """The engine's caches are inference tensors, which may be changed in inference mode only."""
    with torch.inference_mode():
        yield
