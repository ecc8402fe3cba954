"""A run of one's own model, text and method: verified where all three are at hand, else the reason is told."""

import sys

import pytest

from pvcbench.board import archive, make, pack
from pvcbench.board.verifying import UNVERIFIED, VERIFIED, Asked
from pvcbench.config import compose
from pvcbench.models import random_weights
from pvcbench.runs import runner

pytestmark = pytest.mark.long
METHOD = '''from dataclasses import dataclass

from pvcbench.policy import Method


@dataclass(frozen=True)
class Oldest(Method):
    """The first tokens score best."""

    def scores(self, seen):
        return -seen.positions.double()
'''
RUN = ["model=hf", "task=needle", "task.lengths=[300]", "task.max_new_tokens=8", "limit=2", "threads=1"]
RUN += ["wandb.mode=disabled", "method=oldest", "budgets=[0.5]", "dtype=float32"]


@pytest.fixture
def own(tmp_path):
    """A folder with a model and a text, and one of configuration with a method."""
    loaded = random_weights.random("tiny", "cpu", "float32", seed=4)
    loaded.model.save_pretrained(tmp_path / "own" / "little-model")
    loaded.tokenizer.save_pretrained(tmp_path / "own" / "little-model")
    words = " ".join(f"Sentence {number} says that {number * 7919 % 1000} is a number." for number in range(400))
    (tmp_path / "own" / "book.txt").write_text(words, encoding="utf-8")
    for name, text in {"method/oldest.yaml": "# @package methods.oldest\n_target_: methods.oldest.Oldest\n",
                       "methods/oldest.py": METHOD}.items():  # fmt: skip
        path = tmp_path / "conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path / "own"


def test_a_run_of_ones_own_is_verified_where_everything_is_at_hand(own, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    settings = [*RUN, f"model.name={own / 'little-model'}", f"task.haystack={own / 'book.txt'}"]
    config = compose.composed([*settings, f"results={tmp_path / 'results'}"], [tmp_path / "conf"])
    made = pack.pack(runner.run(config, figures=False).folder, "Ada")
    path = tmp_path / "own.zip"
    path.write_bytes(made.content)
    whole = b"".join(archive.unpacked(made.content, path).values()).decode()
    assert str(tmp_path) not in whole
    assert {f"config.{key}: a path's folders" for key in ("model.name", "task.haystack")} <= set(made.manifest.stripped)

    def state(**given):
        board = make.make([path], tmp_path / "site", Asked(seed=1, **given), say=lambda line: None)
        return board.entries[0].state

    bare = state()
    assert bare.state == UNVERIFIED and "methods.oldest.Oldest is not known here" in bare.why
    lacking = state(config_dir=tmp_path / "conf")
    assert lacking.state == UNVERIFIED and "model 'little-model' is not at hand" in lacking.why
    assert lacking.found["scored"] == 4 and not lacking.found["rescored_differ"]
    found = state(config_dir=tmp_path / "conf", places=(own,))
    assert (found.state, found.why) == (VERIFIED, "2 of 2 rows identical"), found
    changed = METHOD.replace("-seen", "2 - seen")
    (tmp_path / "conf" / "methods" / "oldest.py").write_text(changed, encoding="utf-8")
    other = state(config_dir=tmp_path / "conf", places=(own,))
    assert other.state == UNVERIFIED and "the method's code was changed" in other.why
