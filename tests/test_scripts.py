"""The benchmark scripts run: the small ones for real, all of them as far as their imports and options."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parent.parent / "scripts").glob("*.py"))


def run(script, *arguments):
    """A script in a process of its own."""
    return subprocess.run(
        [sys.executable, script, *arguments], capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_tell_their_options(script):
    done = run(script, "--help")
    assert done.returncode == 0 and "usage:" in done.stdout


def test_a_curve_is_measured_end_to_end():
    script = next(path for path in SCRIPTS if path.name == "bench_curve.py")
    done = run(script, "--model", "random", "--tokens", "900", "--samples", "1", "--threads", "1")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["tokens"] == 900 and report["cells"] > 2 and report["curve_over_point"] > 0
