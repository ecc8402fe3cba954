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


MANY = 20  # methods in a test from which on those by every family, or every other choice, are thinned


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of a test of many methods by other choices `make test` runs each method once, the choices in turn.

    The others are slow, so that `make test-all` runs every method by every choice.
    """
    tests = {}
    for item in items:
        name = getattr(item, "callspec", None) and item.callspec.params.get("name")
        if isinstance(name, str):
            tests.setdefault((item.path, item.originalname), {}).setdefault(name, []).append(item)
    for methods in tests.values():
        for turn, crossed in enumerate(methods.values()):
            for place, item in enumerate(crossed):
                if len(methods) >= MANY and place != turn % len(crossed):
                    item.add_marker("slow")
