"""A submission as it was read: checked, unpacked into a folder of our own, its rows as one table."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

from pvcbench.board import archive, completeness, manifest, row_schema
from pvcbench.board.archive import Refused
from pvcbench.board.excerpts import check_excerpts
from pvcbench.board.manifest import Manifest
from pvcbench.errors import UserError
from pvcbench.runs.rows import ROWS, load_table
from pvcbench.runs.run_id import run_id
from pvcbench.runs.stored import stored

DEEPEST = 40  # levels of a configuration
WANTED = {"model": dict, "task": dict, "methods": dict, "budgets": list, "seed": int, "query_aware": bool}
WANTED |= {"refeed_last": bool, "decode": str, "engine": dict, "device": str}  # of an identity


@dataclass(frozen=True)
class Submission:
    """One file with what it holds; nothing of it was executed, and all hashes, rows and the run's id were checked."""

    path: Path
    content: bytes
    manifest: Manifest
    known: Mapping  # run, identity and config, as config.yaml has them
    environment: Mapping  # of the first session; empty where the run has none
    folder: Path  # where its files lie unpacked
    rows: pd.DataFrame
    missing: tuple[str, ...]  # what the run lacks, found in its files

    @property
    def sha256(self) -> str:
        """The hash of the file."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def stem(self) -> str:
        """What the file and its page are called on the site: the run's id and the first digits of the file's hash."""
        return f"{self.manifest.run}-{self.sha256[:8]}"

    @property
    def complete(self) -> bool:
        """Whether the run is finished, by its files and by what its measurer says."""
        return not self.missing and self.manifest.complete


def read(path: Path, place: Path) -> Submission:
    """Reads a submission and unpacks it below a folder; raises Refused where it is not to be trusted."""
    raw = archive.content(path)
    files = archive.unpacked(raw, path)
    name = str(path)
    found = manifest.read(files, name)
    known = configuration(files, name)
    if found.run != known["run"]:
        raise Refused(f"{name}: its manifest is of run {found.run}, its config.yaml of {str(known['run'])[:20]}")
    environments = environments_of(files, name)
    for own, content in files.items():
        if ROWS.fullmatch(own):
            row_schema.checked(content, f"{name}: {own}", known["identity"])
    texts = {own: content for own, content in files.items() if own.startswith("samples")}
    excerpts = {}
    for own, content in texts.items():
        excerpts |= check_excerpts(row_schema.lines(content, f"{name}: {own}"), f"{name}: {own}")
    folder = place / hashlib.sha256(raw).hexdigest()[:16] / "submission" / found.run
    folder.mkdir(parents=True)
    for own, content in files.items():
        (folder / own).write_bytes(content)
    try:
        rows = load_table(folder)
        known |= {"config": stored(folder)["config"]}
    except UserError as error:
        raise Refused(f"{name}: {str(error).replace(f'{folder}/', '').replace(str(folder), 'its folder')}") from error
    prompts(rows, excerpts, name)
    lacking = tuple(completeness.missing(rows, known, list(excerpts)))
    return Submission(path, raw, found, known, environments[0] if environments else {}, folder, rows, lacking)


def configuration(files: Mapping[str, bytes], name: str) -> dict:
    """What config.yaml holds; raises Refused where it is not that of the run that it says it is."""
    if "config.yaml" not in files:
        raise Refused(f"{name}: it has no config.yaml")
    if not any(ROWS.fullmatch(own) for own in files):
        raise Refused(f"{name}: it has no rows")
    try:
        text = files["config.yaml"].decode("utf-8")
        check_yaml(text)
        known = yaml.safe_load(text)
        whole = {key: known[key] for key in ("run", "identity", "config")}
        identity, config = whole["identity"], whole["config"]
        odd = [key for key, kind in WANTED.items() if not isinstance(identity[key], kind)]
        named = isinstance(identity["model"]["name"], str) and isinstance(identity["task"]["name"], str)
        parts = all(isinstance(config[key], dict) for key in ("model", "task", "methods"))
        own = run_id(identity)
    except (UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise Refused(f"{name}: its config.yaml cannot be read ({reason})") from error
    if odd or not named or not parts or not all(isinstance(one, str) for one in identity["budgets"]):
        raise Refused(f"{name}: its config.yaml holds no configuration and identity of a run")
    if own != whole["run"]:
        raise Refused(f"{name}: its identity gives the id {own}, not {str(whole['run'])[:20]}: it was altered")
    return whole


def check_yaml(text: str) -> None:
    """Raises ValueError where a text of YAML has aliases, which grow without bounds, or is nested too deeply."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("it has aliases")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError("it is nested too deeply")


def environments_of(files: Mapping[str, bytes], name: str) -> list[dict]:
    """The environments of a submission's sessions, the first one's first; raises Refused where one cannot be read."""
    found = []
    if "environment.json" in files:
        try:
            found.append(json.loads(files["environment.json"]))
        except (ValueError, RecursionError) as error:
            raise Refused(f"{name}: environment.json is not JSON") from error
        if not isinstance(found[0], dict):
            raise Refused(f"{name}: environment.json is not a JSON object")
    for number, session in enumerate(row_schema.lines(files.get("sessions.jsonl", b""), f"{name}: sessions.jsonl"), 1):
        if not isinstance(session.get("environment"), dict) or type(session.get("before")) is not int:
            raise Refused(f"{name}: sessions.jsonl, line {number} is not that of a session")
        found.append(session["environment"])
    return found


def prompts(rows: pd.DataFrame, excerpts: Mapping[str, Mapping], name: str) -> None:
    """Raises Refused where the rows of a sample, or its excerpt, are of different prompts."""
    hashes = rows.groupby("sample")["prompt_sha256"].agg(set)
    for sample, found in hashes.items():
        own = excerpts.get(sample, {}).get("prompt_sha256")
        if len(found) > 1 or (own is not None and own not in found):
            raise Refused(f"{name}: sample {str(sample)[:60]} has rows or an excerpt of another prompt")
