"""The manifest of a submission: which run it is, who measured it with what, and the hash of each of its files."""

import hashlib
import json
import unicodedata
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from pvcbench.board.archive import MANIFEST, Refused

KIND, SCHEMA = "pvcbench submission", 1  # the schema's number is raised when a key changes its meaning
LENGTHS = {"by": 120, "contact": 200, "note": 2000}


def shown(text: str) -> str:
    """The text if all of it can be seen: no control characters, nor such as turn the direction of what stands beside.

    Raises ValueError.
    """
    if any(unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Co") and letter != "\n" for letter in text):
        raise ValueError("control characters in it")
    return text


Shown = Annotated[str, AfterValidator(shown)]
Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Part(BaseModel):
    """One file of a submission."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    sha256: Hash
    bytes: int = Field(ge=0)


class Manifest(BaseModel):
    """What manifest.json says. `complete` and what is missing are told to people; a reader finds them out itself."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    kind: str
    version: int  # of this schema
    run: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12}$")]
    experiment: Annotated[Shown, StringConstraints(max_length=200)]
    pvcbench: Annotated[Shown, StringConstraints(max_length=80)] | None  # the version that measured
    commit: Annotated[Shown, StringConstraints(max_length=80)] | None  # of the checkout that measured
    by: Annotated[Shown, StringConstraints(min_length=1, max_length=LENGTHS["by"])]
    contact: Annotated[Shown, StringConstraints(max_length=LENGTHS["contact"])] | None
    note: Annotated[Shown, StringConstraints(max_length=LENGTHS["note"])] | None
    complete: bool
    missing: list[Annotated[Shown, StringConstraints(max_length=2000)]]
    stripped: list[Annotated[Shown, StringConstraints(max_length=500)]]  # what was taken out, and where
    files: dict[str, Part]


def written(manifest: Manifest) -> bytes:
    """The manifest as its file holds it."""
    return (json.dumps(manifest.model_dump(), indent=1, ensure_ascii=False) + "\n").encode()


def parts(files: Mapping[str, bytes]) -> dict[str, Part]:
    """The hashes of files."""
    return {name: Part(sha256=hashlib.sha256(raw).hexdigest(), bytes=len(raw)) for name, raw in sorted(files.items())}


def read(files: Mapping[str, bytes], name: str) -> Manifest:
    """The manifest of unpacked files, whose hashes are compared; raises Refused where anything is not as it says."""
    if MANIFEST not in files:
        raise Refused(f"{name}: it has no {MANIFEST}: pack a run with `pvcbench submit`")
    try:
        found = json.loads(files[MANIFEST])
    except (ValueError, RecursionError) as error:
        raise Refused(f"{name}: its {MANIFEST} is not JSON") from error
    if not isinstance(found, dict) or found.get("kind") != KIND:
        raise Refused(f"{name}: its {MANIFEST} is not that of a {KIND}")
    if found.get("version") != SCHEMA:
        told = str(found.get("version"))[:20]
        raise Refused(f"{name}: its manifest has version {told!r}, and this pvcbench reads version {SCHEMA}")
    try:
        manifest = Manifest.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part)[:40] for part in first["loc"])
        raise Refused(f"{name}: its manifest cannot be read: {place}: {first['msg']}") from error
    check(files, manifest, name)
    return manifest


def check(files: Mapping[str, bytes], manifest: Manifest, name: str) -> None:
    """Raises Refused where files and manifest differ."""
    there = files.keys() - {MANIFEST}
    if there != manifest.files.keys():
        odd = min(there ^ manifest.files.keys())
        raise Refused(f"{name}: {odd[:80]!r} stands in the manifest or among the files, not in both")
    for own, part in parts({key: files[key] for key in there}).items():
        if part != manifest.files[own]:
            raise Refused(f"{name}: {own} was changed after it was packed: its hash is not the manifest's")
