"""Every architecture of transformers: what support.json says of it is so, and the page and the command say the same."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import families
from pvcbench.architectures import support, trial
from pvcbench.cli import main
from pvcbench.errors import UserError

ROOT = Path(__file__).parents[2]
KNOWN = support.load()


@pytest.fixture(scope="module")
def methods():
    """Every method of conf/method that needs no file."""
    return trial.own_methods()


def test_the_file_names_every_architecture_of_the_installed_transformers():
    if support.installed() != KNOWN.transformers:
        pytest.skip(f"it was made with transformers {KNOWN.transformers}")
    assert {name: family.model for name, family in KNOWN.types.items()} == support.architectures()
    assert set(KNOWN.families) == set(families.every())
    assert KNOWN.methods == list(trial.own_methods())


def test_what_runs_says_how_exactly():
    for family in KNOWN.families.values():
        if family.verdict != support.RUNS:
            assert family.reason, family
            continue
        assert 1 <= family.evicted <= family.layers, family
        assert family.generated, family
        assert family.error < (1e-9 if family.dtype == "float64" else 1e-3), family


def told_of(name, methods):
    """A family as the file has it of these methods and as a trial finds it now, without what rounding changes."""
    now, kept = trial.run(name, methods), KNOWN.families[name]
    assert (now.error or 0) <= 100 * (kept.error or 0) + 1e-12
    refused = {method: reason for method, reason in kept.refused.items() if method in methods}
    return replace(now, error=None), replace(kept, error=None, refused=refused)


@pytest.mark.parametrize("name", families.REPRESENTATIVE)
@pytest.mark.sampled(1)
def test_one_family_of_each_kind_is_as_the_file_says(name, methods):
    now, kept = told_of(name, methods)
    assert now == kept


@pytest.mark.slow
@pytest.mark.parametrize("name", families.every())
def test_every_family_is_as_the_file_says(name, methods):
    """With every sixth method, in turns from family to family: all methods in all families take most of an hour."""
    first = families.every().index(name) % 6
    now, kept = told_of(name, dict(list(methods.items())[first::6]))
    assert now == kept


def test_a_tiny_model_is_the_same_for_the_same_seed():
    one, two, three = (families.build("qwen3", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.lm_head.weight, two.lm_head.weight)
    assert not torch.equal(one.lm_head.weight, three.lm_head.weight)


def test_models_written_in_float64_round_to_float32_outside_of_unrounded_only():
    ids, model = families.prompt(20), families.build("llama", torch.float64)
    with torch.inference_mode():
        rounded = model(ids).logits
        with families.unrounded():
            exact = model(ids).logits
        assert torch.equal(model(ids).logits, rounded)
    assert 0 < (exact - rounded).abs().max() < 1e-4


def test_the_page_is_current():
    script = [sys.executable, ROOT / "scripts" / "model_support.py", "--check"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def asked(capsys, *arguments):
    """What `pvcbench models` prints."""
    assert main.main(["models", *arguments]) == 0
    return capsys.readouterr().out


def test_the_list_and_its_counts(capsys):
    shown = asked(capsys)
    assert f"{KNOWN.counts['runs']} run, {KNOWN.counts['refused']} are refused" in shown
    entries = json.loads(asked(capsys, "--json"))
    assert {entry["name"] for entry in entries} == set(KNOWN.families)


@pytest.mark.parametrize("name", ["llama", "LlamaForCausalLM", "LLAMA"])
def test_a_name_is_a_model_type_or_a_class(name, capsys):
    shown = asked(capsys, name)
    assert "llama (LlamaForCausalLM): runs" in shown and "4 of the 4 layers" in shown


def test_what_is_refused_says_why(capsys):
    name = next(name for name, family in KNOWN.types.items() if family.verdict == support.REFUSED)
    assert KNOWN.families[name].reason in asked(capsys, name)


def test_an_unknown_name_gets_its_nearest(capsys):
    assert main.main(["models", "lama"]) == 2
    assert "did you mean" in capsys.readouterr().err
    assert main.main(["models", "no/such/folder"]) == 2
    assert "no folder" in capsys.readouterr().err
    with pytest.raises(UserError, match="lists them"):
        support.found(KNOWN, "zzzzqqqq")


def test_a_folder_is_tried_as_it_is_configured(tmp_path, capsys):
    families.config("qwen2").save_pretrained(tmp_path)
    assert "qwen2 (Qwen2ForCausalLM): runs" in asked(capsys, str(tmp_path))
    [entry] = json.loads(asked(capsys, str(tmp_path), "--try", "--json"))
    assert (entry["name"], entry["verdict"], entry["evicted"]) == (tmp_path.name, "runs", 4)


def test_another_transformers_is_told(monkeypatch, capsys):
    monkeypatch.setattr(support, "installed", lambda: "9.9.9")
    monkeypatch.setattr(support, "architectures", lambda: {"llama": "LlamaForCausalLM", "newest": "NewestForCausalLM"})
    assert "9.9.9 is installed" in asked(capsys)
    assert "newest (NewestForCausalLM): not known" in asked(capsys, "newest")
