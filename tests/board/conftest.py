"""A small finished run of a random model, its packed file, and ways to alter both."""

import json
import shutil

import pytest

from pvcbench.board import archive, manifest, pack
from pvcbench.config import compose
from pvcbench.runs import runner

RUN = ["model=random", "threads=1", "wandb.mode=disabled", "method=[h2o,streaming_llm]", "budgets=[0.3,0.6]"]
RUN += ["task=needle", "task.lengths=[300]", "task.max_new_tokens=8", "limit=3", "experiment=trial"]


@pytest.fixture(scope="session")
def measured(tmp_path_factory):
    """The folder of a run: 3 samples, 5 cells."""
    results = tmp_path_factory.mktemp("measured")
    return runner.run(compose.composed([*RUN, f"results={results}"]), figures=False).folder


@pytest.fixture(scope="session")
def original(measured):
    """The run packed, as bytes."""
    return pack.pack(measured, "Ada").content


@pytest.fixture
def run(measured, tmp_path):
    """A copy of the run that a test may alter."""
    folder = tmp_path / "trial" / measured.name
    shutil.copytree(measured, folder)
    return folder


@pytest.fixture
def submit(original, tmp_path):
    """Writes the submission with some of its files and of its manifest changed; hashes follow unless told not to."""

    def made(name="one.zip", files=(), hashes=True, **said):
        whole = archive.unpacked(original, tmp_path / name)
        told = json.loads(whole.pop("manifest.json"))
        whole |= dict(files)
        if hashes:
            told["files"] = {key: part.model_dump() for key, part in manifest.parts(whole).items()}
        path = tmp_path / name
        path.write_bytes(archive.packed({**whole, "manifest.json": json.dumps({**told, **said}).encode()}))
        return path

    return made


@pytest.fixture
def rows(original, tmp_path):
    """The submission's rows as dictionaries, and a way back to the bytes of their file."""
    raw = archive.unpacked(original, tmp_path)["rows.jsonl"]
    return [json.loads(line) for line in raw.decode().splitlines()]
