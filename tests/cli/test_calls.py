"""What `evaluate` and models are given: what can be understood is, the rest is one line that says what to do."""

import json
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from pvcbench.config import building, extras
from pvcbench.errors import UserError
from pvcbench.models import hub, loaded, random_weights
from pvcbench.runs import from_python

ROOT = Path(__file__).parents[2]


def composed(**given):
    """The configuration of a call."""
    asked = {"model": "random", "task": "needle", "methods": ["h2o"], "budgets": None} | given
    return OmegaConf.to_container(from_python.understood(**{"settings": {}} | asked)[0])


@pytest.mark.parametrize(
    "value, expected",
    [
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (torch.tensor(2), 2),
        (Path("a folder") / "x=1", "a folder/x=1"),
        (np.str_("text"), "text"),
        (torch.device("cpu"), "cpu"),
        (torch.float16, "float16"),
        (None, None),
    ],
)
def test_settings_of_other_libraries_are_understood(value, expected):
    assert composed(settings={"results": value if isinstance(value, str | Path) else "x"})["results"] in ("x", expected)
    assert from_python.plain(value, "seed") == expected and type(from_python.plain(value, "seed")) is type(expected)


def test_a_whole_call_in_other_types():
    made = composed(
        budgets=np.array([0.25, 0.5]),
        methods=("h2o", "random"),
        settings={
            "seed": np.int64(3),
            "device": torch.device("cpu"),
            "results": Path("out"),
            "wandb": {"mode": "disabled"},
            "engine": {"chunk": np.int32(64)},
            "task__lengths": range(100, 300, 100),
            "dtype": torch.float32,
        },
    )
    assert made["budgets"] == [0.25, 0.5] and set(made["methods"]) == {"h2o", "random", "full"} and made["seed"] == 3
    assert (made["device"], made["results"], made["dtype"]) == ("cpu", "out", "float32")
    assert (
        made["wandb"]["mode"] == "disabled" and made["engine"]["chunk"] == 64 and made["task"]["lengths"] == [100, 200]
    )


def h2o():
    building.load_methods_package()
    from methods.h2o import H2O

    return H2O


WRONG = {
    "model must be the name of a file .*LoadedModel., not PosixPath": lambda: {"model": Path("x")},
    "model must be .*not Linear": lambda: {"model": torch.nn.Linear(1, 1)},
    "task must be the name of a file in conf/task .*not 3": lambda: {"task": 3},
    "methods must map names to Method objects; 'mine' is the class H2O .make an object of it": lambda: {
        "methods": {"mine": h2o()}
    },
    "methods holds H2O.*give objects as a dictionary": lambda: {"methods": [h2o()()]},
    "methods must be names or a dictionary .*not H2O": lambda: {"methods": h2o()()},
    "methods is empty": lambda: {"methods": []},
    "seed: an object of type Generator cannot be a setting": lambda: {"settings": {"seed": np.random.default_rng(0)}},
    "model__name: model was given as an object": lambda: {
        "model": random_weights.random("tiny", "cpu", None),
        "settings": {"model__name": "x"},
    },
}


@pytest.mark.parametrize("message", WRONG)
def test_what_cannot_be_understood_is_one_line(message):
    with pytest.raises(UserError, match=message) as caught:
        composed(**WRONG[message]())
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------- folders of models


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("here") / "small"
    loaded = random_weights.random("tiny", "cpu", None)
    loaded.model.save_pretrained(made)
    loaded.tokenizer.save_pretrained(made)
    return made


def refused(name, **options):
    """The one line that a model's name gets."""
    with pytest.raises(UserError) as caught:
        hub.hf(str(name), "cpu", options.pop("dtype", None), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def without(folder, tmp_path, *names, **texts):
    """A copy of a model's folder without some files, and with others."""
    made = tmp_path / "copied"
    made.mkdir()
    for path in folder.iterdir():
        if path.name not in names:
            (made / path.name).write_bytes(path.read_bytes())
    for name, text in texts.items():
        (made / name.replace("_bin", ".bin").replace("_json", ".json")).write_text(text)
    return made


def test_folders_that_hold_no_model(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "is empty" in refused(tmp_path / "empty")
    tokens = [path.name for path in folder.iterdir() if path.name.startswith("tokenizer")]
    for number, (names, texts, said) in enumerate(
        [
            (tokens, {}, "has no tokenizer: copy tokenizer.json"),
            (["model.safetensors"], {"pytorch_model_bin": ""}, "has its weights as .bin only"),
            (["model.safetensors"], {}, "has no weights"),
            (["config.json"], {}, "has no config.json"),
            (["config.json"], {"adapter_config_json": "{}"}, "holds an adapter"),
            ([], {"config_json": "{"}, "not a valid JSON"),
            ([], {"config_json": json.dumps({"model_type": "nosuch"})}, "nosuch"),
        ]
    ):
        place = tmp_path / str(number)
        place.mkdir()
        assert said in refused(without(folder, place, *names, **texts)), said
    place = tmp_path / "corrupt"
    place.mkdir()
    broken = without(folder, place)
    (broken / "model.safetensors").write_text("no tensors")
    assert refused(broken).startswith("cannot load model")
    assert "and " in refused(folder, revision="main") and "is a folder: leave it out" in refused(
        folder, revision="main"
    )


def test_paths_that_do_not_exist_never_reach_the_hub(folder, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("this asks the hub")

    monkeypatch.setattr(hub.AutoTokenizer, "from_pretrained", never)
    monkeypatch.setattr(hub, "get_hf_file_metadata", never)
    monkeypatch.chdir(folder.parent.parent)
    here = folder.parent.name
    for name in (
        f"{here}/smal",
        "a/b/c",
        "./small",
        "../small",
        "/no/such",
        "~/no/such",
        "~nobody/x",
        "my model",
        "a\\b",
    ):
        assert refused(name).startswith(f"cannot load tokenizer {name!r}") or "cannot load model" in refused(name)
    (folder.parent / "weights.gguf").write_text("")
    assert "it is a file" in refused(folder.parent / "weights.gguf")
    assert "cannot load tokenizer" in refused(folder, tokenizer="/no/such")


def test_the_hub_is_asked_once(monkeypatch):
    """Loading asks again for most of a minute where there is no network."""
    asked = []

    def fails(url, **options):
        asked.append(url)
        raise ConnectionError("no network")

    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "get_hf_file_metadata", fails)
    assert "the hub cannot be reached (no network)" in refused("nosuchorg/nosuchmodel") and len(asked) == 1


# ---------------------------------------------------------------------------------------------- settings


def test_attention_is_one_of_a_list(folder, monkeypatch):
    for load in (
        lambda **one: random_weights.random("tiny", "cpu", None, **one),
        lambda **one: hub.hf(folder, "cpu", None, **one),
    ):
        with pytest.raises(UserError, match=r"unknown model\.attention 'flash': did you mean flash_attention_2"):
            load(attention="flash")
        for name in ("eager", "Sdpa ", "", None, "flash_attention_3"):
            with pytest.raises(UserError, match=r"unknown model\.attention"):
                load(attention=name)
        with pytest.raises(UserError, match="flash_attention_2 needs a GPU"):
            load(attention="flash_attention_2")
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    monkeypatch.setattr(loaded.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs flash-attn: pip install 'flash-attn>=2\.8'"):
        loaded.check_attention("flash_attention_2", "cuda")
    monkeypatch.setattr(loaded.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(UserError, match="cannot compute in float32"):
        loaded.check_attention("flash_attention_2", "cuda", "float32")
    loaded.check_attention("flash_attention_2", "cuda", "bfloat16")


def test_every_dtype_that_works_is_listed(folder):
    for load in (
        lambda dtype: random_weights.random("tiny", "cpu", dtype),
        lambda dtype: hub.hf(str(folder), "cpu", dtype),
    ):
        with pytest.raises(UserError, match=r"float32, bfloat16, float16, float64 or auto"):
            load("fp16")
        assert load("auto").identity["dtype"] == "float32" and load("bfloat16").identity["dtype"] == "bfloat16"


def test_messages_name_packages_that_can_be_installed():
    """No index has pvcbench, so that its extras cannot be installed by name: the packages themselves can."""
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert {name: tuple(known[name]) for name in extras.EXTRAS} == extras.EXTRAS
    assert extras.pip_install("report") == "pip install 'jinja2>=3.1'"
    for path in [
        *(ROOT / "pvcbench").rglob("*.py"),
        *(ROOT / "conf").rglob("*.yaml"),
        *(ROOT / "methods").glob("*.py"),
    ]:
        assert "pvcbench[" not in path.read_text(encoding="utf-8"), path
