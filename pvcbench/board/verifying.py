"""Verifies submissions: a random sample of each is measured again where the model is at hand; names their states."""

import hashlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from pvcbench.board import trust
from pvcbench.board.submission import Submission

VERIFIED, DIFFERS, UNVERIFIED = "verified", "differs", "not verified"
PACKAGE = Path(__file__).parents[2]


@dataclass(frozen=True)
class Asked:
    """How submissions are verified."""

    samples: int = 1  # measured again of each submission; 0: none
    seed: int = field(default_factory=lambda: secrets.randbelow(2**31))  # nobody who submits can know it before
    minutes: float = 30.0  # that one submission may take
    tolerance: float | None = None
    places: tuple[Path, ...] = ()  # folders with models and files, by their last name
    config_dir: Path | None = None  # the verifier's own methods and tasks


@dataclass(frozen=True)
class State:
    """What is known of a submission's numbers: a state, the reason in a sentence, and what was found."""

    state: str
    why: str
    found: Mapping = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        """The reason with a capital letter."""
        return self.why[:1].upper() + self.why[1:]

    @property
    def differing(self) -> list:
        """The rows that differ and how."""
        return list(self.found.get("differ", ()))


def verified(one: Submission, asked: Asked) -> State:
    """Measures some of a submission again, or says why not."""
    if asked.samples == 0:
        return State(UNVERIFIED, "no submission was measured again for this board")
    if one.rows["error"].notna().all():
        return State(UNVERIFIED, "it has no row without an error, so there is nothing to measure again")
    folders = () if asked.config_dir is None else (asked.config_dir,)
    reason = trust.distrusted(one.known["config"], folders)
    if reason is not None:
        return State(UNVERIFIED, reason)
    config, absent = trust.at_hand(one.known["config"], asked.places)
    found = measured(one, config, asked, 0 if absent else cells_for(one, asked.samples))
    found |= {"problem": absent} if absent else {}
    return judged(found, one.rows["sample"].nunique(), one.known["config"].get("limit"))


def measured(one: Submission, config: Mapping, asked: Asked, cells: int) -> dict:
    """What the process that measures this many cells again found; `problem` says why it found nothing."""
    with tempfile.TemporaryDirectory(prefix="pvcbench-board-") as place:
        folder, result = Path(place) / "submission" / one.manifest.run, Path(place) / "result.json"
        folder.mkdir(parents=True)
        for path in one.folder.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        known = {**one.known, "config": config}
        text = yaml.safe_dump(known, sort_keys=False, allow_unicode=True)
        (folder / "config.yaml").write_text(text, encoding="utf-8")
        command = [sys.executable, "-m", "pvcbench.board.again", str(folder)]
        command += [str(cells), str(seed_for(one, asked.seed)), str(result)]
        command += ["--config-dir", str(asked.config_dir.resolve())] if asked.config_dir else []
        command += ["--tolerance", str(asked.tolerance)] if asked.tolerance else []
        empty = Path(place) / "empty"  # where relative names of a stranger lead to nothing
        empty.mkdir()
        paths = [str(PACKAGE), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        own = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(paths)}
        try:
            ended = subprocess.run(
                command, cwd=empty, env=own, timeout=60 * asked.minutes, capture_output=True, text=True, check=False
            )
        except subprocess.TimeoutExpired:
            return {"problem": f"measuring it again took longer than {asked.minutes:g} minutes (--minutes)"}
        if not result.is_file():
            last = (ended.stderr.strip().splitlines() or ["it was stopped"])[-1]
            return {"problem": f"measuring it again failed: {last.replace(place, '')[:300]}"}
        return json.loads(result.read_text(encoding="utf-8"))


def cells_for(one: Submission, samples: int) -> int:
    """As many cells as make `verify` choose this many whole samples."""
    most = int(one.rows.groupby("sample").size().max())
    return (samples - 1) * most + 1


def seed_for(one: Submission, seed: int) -> int:
    """The seed of a submission's draw, which depends on its content too."""
    digest = hashlib.sha256(f"{seed} {one.sha256}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def judged(found: dict, samples: int, limit: int | None) -> State:
    """The state that follows from what was found."""
    total = found.get("total")
    if total is not None and limit is None and samples < total:
        found["lacks"] = f"{samples} of the task's {total} samples are measured"
    changed = found.get("changed", [])
    if found.get("rescored_differ") and not any(line.startswith("task.") for line in changed):
        why = f"{found['rescored_differ']} of {found['scored']} stored scores do not follow from the stored answers"
        return State(DIFFERS, why, found)
    if "problem" in found:
        return State(UNVERIFIED, found["problem"], found)
    count, same = found["compared"], found["identical"]
    if changed:
        first, more = changed[0], f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        rows = f"{same} of {count} rows came out the same all the same"
        return State(UNVERIFIED, f"this version would measure another run ({first}{more}); {rows}", found)
    if not found["agree"]:
        return State(DIFFERS, f"{count - same} of {count} rows came out otherwise", found)
    how = "identical" if found["exact"] else "within the tolerance (another machine)"
    other = f", {found['other_outputs']} with another output" if found["other_outputs"] else ""
    speeds = " but for the speeds, which never repeat" if found["speeds"] else ""
    return State(VERIFIED, f"{same} of {count} rows {how}{other}{speeds}", found)
