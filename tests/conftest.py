"""Shared by all tests: one thread, no network, and the engine's shape annotations checked at run time."""

import os
import signal

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from jaxtyping import install_import_hook

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported

install_import_hook(["pvcbench.engine", "pvcbench.policy"], "beartype.beartype")
torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell that starts the tests in the background ignores Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)  # and so would every process whose end by it is tested


@pytest.fixture
def inference():
    """The engine's caches are inference tensors, which may be changed in inference mode only."""
    with torch.inference_mode():
        yield


MANY = 20  # methods in a test from which on those by every family, or every other choice, are thinned


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of a test of many methods by other choices `make test` runs each method once, the choices in turn.

    Of a test with `sampled(count)` it runs so many cases, evenly spread. The others are slow, so that `make test-all`
    runs every method by every choice, and every case.
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
    sampled = {}
    for item in items:
        if item.get_closest_marker("sampled") and not item.get_closest_marker("slow"):
            sampled.setdefault((item.path, item.originalname), []).append(item)
    for cases in sampled.values():
        count = min(len(cases), cases[0].get_closest_marker("sampled").args[0])
        kept = {number * len(cases) // count for number in range(count)}
        for place, item in enumerate(cases):
            if place not in kept:
                item.add_marker("slow")
