"""A stranger's configuration: only what conf/ names is built, nothing is filled in, no file of this machine is read."""

from pathlib import Path

import pytest

from pvcbench.board import trust
from pvcbench.board.private import GONE
from pvcbench.runs.stored import stored

RESULTS = Path(__file__).parents[2] / "results"
MODEL = {"_target_": "pvcbench.models.random_weights.random", "shape": "tiny"}
TASK = {"_target_": "pvcbench.tasks.needle.task.Needle", "haystack": "sotu"}
METHODS = {"h2o": {"_target_": "methods.h2o.H2O", "normalize": False}}


def config(**changed):
    return {"model": MODEL, "task": TASK, "methods": METHODS, "budgets": [0.5], "device": "auto"} | changed


@pytest.mark.parametrize(
    "folder", sorted({path.parent for path in RESULTS.rglob("config.yaml")}), ids=lambda path: path.name
)
def test_what_was_measured_from_conf_is_trusted(folder):
    assert trust.distrusted(stored(folder)["config"]) is None


@pytest.mark.parametrize(("changed", "reason"), [
    ({"model": {"_target_": "os.system", "command": "touch owned"}}, "os.system is not known here"),
    ({"task": {"_target_": "subprocess.run", "args": ["true"]}}, "subprocess.run is not known here"),
    ({"methods": {"x": {"_target_": "methods.mine.Mine"}}}, "methods.mine.Mine is not known here (code is never taken"),
    ({"methods": {"x": METHODS["h2o"] | {"base": {"_target_": "builtins.eval"}}}}, "builtins.eval is not known here"),
    ({"task": TASK | {"lengths": [{"a": [{"_target_": "builtins.exec"}]}]}}, "builtins.exec is not known here"),
    ({"model": {"_target_": 5}}, "5 is not known here"),
    ({"model": MODEL | {"_args_": ["x"]}}, "a key '_args_'"),
    ({"methods": {"h2o": METHODS["h2o"] | {"_partial_": True}}}, "a key '_partial_'"),
    ({"task": TASK | {"haystack": "${oc.env:HOME}"}}, "a text with ${"),
    ({"device": "${oc.env:HOME}"}, "a text with ${"),
    ({"model": MODEL | {"trust_remote_code": True}}, "code of its own"),
    ({"task": TASK | {"haystack": "/etc/passwd"}}, "task.haystack names a path"),
    ({"task": TASK | {"haystack": "~/texts"}}, "task.haystack names a path"),
    ({"task": TASK | {"haystack": "../../etc/passwd"}}, "task.haystack names a path"),
    ({"task": TASK | {"haystack": r"C:\texts"}}, "task.haystack names a path"),
    ({"task": TASK | {"sets": ["/etc/x.yaml"]}}, "task.sets[0] names a path"),
])  # fmt: skip
def test_what_could_do_harm_is_not_built(changed, reason):
    found = trust.distrusted(config(**changed))
    assert found is not None and reason in found


def test_a_folder_of_ones_own_is_trusted_by_name(tmp_path):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text("# @package methods.mine\n_target_: methods.mine.Mine\n")
    changed = config(methods={"mine": {"_target_": "methods.mine.Mine"}})
    assert trust.distrusted(changed) is not None and trust.distrusted(changed, [tmp_path]) is None


def test_models_and_files_are_looked_for_by_their_last_name(tmp_path):
    hub = {"_target_": "pvcbench.models.hub.hf", "name": f"{GONE}/mine", "tokenizer": None}
    asked = config(model=hub, task=TASK | {"haystack": f"{GONE}/book.txt"})
    assert "model 'mine' is not at hand" in trust.at_hand(asked)[1]
    (tmp_path / "mine").mkdir()
    assert "file 'book.txt' is not at hand" in trust.at_hand(asked, [tmp_path])[1]
    (tmp_path / "book.txt").write_text("words")
    made, reason = trust.at_hand(asked, [tmp_path])
    assert reason is None and made["model"]["name"] == str(tmp_path / "mine")
    assert made["task"]["haystack"] == str(tmp_path / "book.txt") and asked["task"]["haystack"] == f"{GONE}/book.txt"


def test_a_methods_file_is_looked_for_by_its_last_name(tmp_path):
    inner = {"_target_": "methods.kvzap.KVzap", "file": f"{GONE}/zap.safetensors"}
    asked = config(methods={"x": {"_target_": "methods.chunkkv.ChunkKV", "base": inner}})
    assert trust.distrusted(asked) is None
    assert "file 'zap.safetensors' is not at hand" in trust.at_hand(asked)[1]
    (tmp_path / "zap.safetensors").write_bytes(b"")
    made, reason = trust.at_hand(asked, [tmp_path])
    assert reason is None and made["methods"]["x"]["base"]["file"] == str((tmp_path / "zap.safetensors").resolve())


def test_a_model_of_the_hub_must_be_in_the_cache(tmp_path, monkeypatch):
    hub = {"_target_": "pvcbench.models.hub.hf", "name": "some-org/some-model", "tokenizer": None, "revision": None}
    assert "some-org/some-model is not at hand" in trust.at_hand(config(model=hub))[1]
    monkeypatch.setattr(trust, "try_to_load_from_cache", lambda *_, **__: str(tmp_path))
    assert trust.at_hand(config(model=hub))[1] is None
    odd = hub | {"name": "no/such/name/of the hub"}
    monkeypatch.undo()
    assert "is not at hand" in trust.at_hand(config(model=odd))[1]


def test_the_embedded_model_may_be_absent(monkeypatch, tmp_path):
    monkeypatch.setattr(trust, "find_spec", lambda name: None)
    monkeypatch.setenv("PVCBENCH_CACHE", str(tmp_path))
    assert "not installed here" in trust.at_hand(config(model={"_target_": trust.SMOLLM2}))[1]
    assert trust.at_hand(config())[1] is None
