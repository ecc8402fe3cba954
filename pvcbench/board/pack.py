"""Packs a finished run into the one file that `pvcbench board` reads."""

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from pvcbench.board import archive, completeness, private, row_schema
from pvcbench.board.archive import MANIFEST, SUFFIX
from pvcbench.board.excerpts import check_excerpts
from pvcbench.board.manifest import KIND, LENGTHS, SCHEMA, Manifest, parts, shown, written
from pvcbench.errors import UserError
from pvcbench.runs import prompt_excerpts, rescore
from pvcbench.runs.packed import content, plain
from pvcbench.runs.rows import load_table, row_files
from pvcbench.runs.run_id import run_id
from pvcbench.runs.stored import stored


@dataclass(frozen=True)
class Packed:
    """A packed run: its file, its name, and what people are told of it."""

    content: bytes
    name: str
    manifest: Manifest
    unknown: str | None  # why it is not known whether all of the task's samples are there


class Plain(yaml.SafeDumper):
    """Writes every value where it stands, without the aliases that a reader refuses."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def pack(
    folder: Path,
    by: str,
    contact: str | None = None,
    note: str | None = None,
    partial: bool = False,
    excerpts: bool = True,
) -> Packed:
    """A run's folder as one file; raises UserError where it must not be packed as it is."""
    signed = {"by": by, "contact": contact, "note": note}
    check_signature(signed)
    known = checked_run(folder)
    with rescore.locked(folder) if os.access(folder, os.W_OK) else contextlib.nullcontext():
        files, stripped = files_of(folder, known, excerpts)
        rows = load_table(folder)
        missing = completeness.missing(rows, known, list(prompt_excerpts.read(folder)))
        more, unknown = ([], None) if missing else completeness.unmeasured(folder, rows["sample"].nunique())
    missing += more
    if missing and not partial:
        raise UserError(
            f"{folder} is not finished ({missing[0]}): run the same command again, or submit it with --partial, "
            "which marks it as incomplete"
        )
    environment = json.loads(files["environment.json"]) if "environment.json" in files else {}
    manifest = Manifest(
        kind=KIND,
        version=SCHEMA,
        run=known["run"],
        experiment=shown(folder.resolve().parent.name)[:200],
        pvcbench=(environment.get("packages") or {}).get("pvcbench"),
        commit=environment.get("commit"),
        **signed,
        complete=not missing,
        missing=missing,
        stripped=stripped,
        files=parts(files),
    )
    content = archive.packed({**files, MANIFEST: written(manifest)})
    return Packed(content, f"{known['run']}{SUFFIX}", manifest, unknown)


def check_signature(signed: Mapping[str, str | None]) -> None:
    """Raises UserError where what a person signs with is empty, too long or not readable."""
    for key, text in signed.items():
        if text is None and key != "by":
            continue
        if not text or not text.strip() or len(text) > LENGTHS[key]:
            raise UserError(f"--{key} must have 1 to {LENGTHS[key]} characters, not {len(text or '')}")
        try:
            shown(text)
        except ValueError as error:
            raise UserError(f"--{key} must be plain text: there are {error}") from error
        private.refuse_secrets(text, f"--{key}", "leave it out")


def checked_run(folder: Path) -> dict:
    """What the run's config.yaml holds; raises UserError where it is not that of a run, or not of this id."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: name the folder of one run, such as results/default/RUN")
    if not row_files(folder):
        raise UserError(f"{folder} has no rows: name the folder of one run, such as results/default/RUN")
    for path in folder.iterdir():
        if archive.NAMES.fullmatch(path.name) and (path.is_symlink() or not path.is_file()):
            raise UserError(f"{path} is a link or no file: a submission holds the run's own files only")
    known = stored(folder)
    if run_id(known["identity"]) != known["run"]:
        raise UserError(f"{folder}/config.yaml was altered: its identity does not give the id {known['run']}")
    private.refuse_paths(known["identity"], f"{folder}/config.yaml: identity")
    return known


def files_of(folder: Path, known: Mapping, excerpts: bool) -> tuple[dict[str, bytes], list[str]]:
    """The files to pack, without what is private, and what was taken out of them."""
    stripper, files = private.Stripper(), {}
    files["config.yaml"] = config_of(known, stripper)
    first = folder / "environment.json"
    if first.exists():
        files[first.name] = (json.dumps(stripper.value(document(first), "environment"), indent=1) + "\n").encode()
    sessions = folder / "sessions.jsonl"
    if sessions.exists():
        found = row_schema.lines(whole_lines(sessions), str(sessions))
        files[sessions.name] = joined(stripper.value(one, f"session {n}") for n, one in enumerate(found, start=1))
    for name in ("config.yaml", *(one.name for one in (first, sessions) if one.exists())):
        place, advice = f"{folder}/{name}", "take it out of the file, it changes no number, and submit again"
        values = [yaml.safe_load(files[name])] if name != sessions.name else row_schema.lines(files[name], place)
        for value in values:
            private.refuse_secrets(value, place, advice)
    for path in row_files(folder):
        files[plain(path).name] = rows_of(path, known["identity"], stripper)
    for path in sorted(folder.glob("samples*.jsonl")) if excerpts else ():
        if archive.NAMES.fullmatch(path.name):
            files[path.name] = whole_lines(path)
            check_excerpts(row_schema.lines(files[path.name], str(path)), str(path))
    return files, [f"{place}: {what}" for place, what in sorted(stripper.told.items())]


def config_of(known: Mapping, stripper: private.Stripper) -> bytes:
    """config.yaml without paths and accounts; its identity stays to the letter."""
    config = stripper.value(known["config"], "config")
    wandb = config.get("wandb")
    if isinstance(wandb, dict) and wandb.get("entity"):
        wandb["entity"], stripper.told["config.wandb.entity"] = None, "an account's name"
    kept = {"run": known["run"], "identity": known["identity"], "config": config}
    text = yaml.dump(kept, Dumper=Plain, sort_keys=False, allow_unicode=True)
    if run_id(yaml.safe_load(text)["identity"]) != known["run"]:
        raise UserError(f"the identity of run {known['run']} cannot be written as YAML without a change: leave it out")
    return text.encode()


def document(path: Path) -> object:
    """A JSON file of the run's folder."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: a submission says what its run was measured on") from error


def whole_lines(path: Path) -> bytes:
    """A file's lines without a last one that a kill tore."""
    raw = content(path)
    return raw[: raw.rfind(b"\n") + 1]


def joined(values) -> bytes:
    """Values as JSON lines."""
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values).encode()


def rows_of(path: Path, identity: Mapping, stripper: private.Stripper) -> bytes:
    """The rows of a file to the byte, but for paths in the sentences of errors; their lines keep their numbers."""
    raw, made = whole_lines(path), []
    rows = row_schema.checked(raw, str(path), identity)
    for number, (line, row) in enumerate(zip(raw.decode().split("\n"), rows, strict=False), start=1):
        place = f"{path.name} line {number}: error"
        said = stripper.text(row["error"], place) if row["error"] is not None else None
        if said is not None:
            private.refuse_secrets(said, place, "delete the line, and the next run measures its cell again")
        made.append(line if said == row["error"] else json.dumps({**row, "error": said}, ensure_ascii=False))
    return "".join(f"{line}\n" for line in made).encode()
