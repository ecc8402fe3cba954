"""The sessions of a run: which process, on which machine and with which versions, measured which rows.

environment.json describes the first session and is never changed. sessions.jsonl has a line for every session that
measured something: its environment, the file it wrote to and how many rows stood there before. Rows are only ever
appended, so a row belongs to the last session of its file that found no more rows there than stand before it.
"""

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from pvcbench.errors import UserError

NAME = "sessions.jsonl"
IGNORED = {"started", "commit", "dirty", "source", "platform", "variables", "seeds", "data", "model"}
IGNORED |= {"pvcbench", "wandb", "matplotlib"}  # packages that change no number, or whose parts the identity tells


def add(rows: Path, environment: Mapping) -> None:
    """Notes a session that is about to append to this file of rows; several may do so at once, each to its own."""
    before = rows.read_bytes().count(b"\n") if rows.exists() else 0
    session = {"file": rows.name, "before": before, "environment": dict(environment)}
    line = json.dumps(session, ensure_ascii=False) + "\n"
    with (rows.parent / NAME).open("a+b") as out:
        fcntl.flock(out, fcntl.LOCK_EX)
        end = out.seek(0, os.SEEK_END)
        if end and os.pread(out.fileno(), 1, end - 1) != b"\n":  # torn by a kill
            line = "\n" + line
        out.write(line.encode())
        out.flush()
        os.fsync(out.fileno())


def refuse_other_weights(folder: Path, now: Mapping) -> None:
    """Refuses to go on with a run whose weights in memory are not those that its first session recorded.

    Weights that are drawn at random have their id from the seed and torch's version, and another version of
    transformers, or another processor, may draw others.
    """
    try:
        then = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        pair = [[one["model"][name] for name in ("loaded_sha256", "elements_per_tensor")] for one in (then, now)]
    except (OSError, ValueError, KeyError, TypeError):
        return  # an older run, which tells less: nothing to hold against today's
    if pair[0][1] == pair[1][1] and pair[0][0] != pair[1][0]:
        found = [line for line in differences(then, now) if line.startswith(("packages.", "processor", "cpu"))]
        why = f" ({'; '.join(found)})" if found else ""
        raise UserError(
            f"{folder} was measured with other weights under the same id than those in memory now{why}: "
            "go on where it began, or set another experiment=NAME to measure anew"
        )


def read(folder: Path) -> list[dict]:
    """All sessions in the order they were noted, after the one of environment.json (older runs have only that)."""
    path, found = folder / NAME, []
    try:
        first = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        found.append({"file": "rows.jsonl", "before": 0, "environment": first})
    except (OSError, ValueError) as error:
        if not path.exists():
            raise UserError(f"{folder} has no readable environment.json: what it ran on is not known") from error
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            session = json.loads(line)
            found.append({name: session[name] for name in ("file", "before", "environment")})
        except (ValueError, KeyError, TypeError):
            continue  # torn by a kill: its process had written no row yet
    return found


def session_of(sessions: Sequence[Mapping], file: str, line: int) -> Mapping | None:
    """The session that wrote the row with this number of rows before it in its file; None where nothing tells."""
    own = [session for session in sessions if session["file"] == file and session["before"] <= line]
    return own[-1] if own else None


def differences(one: Mapping, other: Mapping) -> list[str]:
    """Where two environments differ in what can change a number's last digits: machine, versions, threads, flags.

    What only one of them tells (older files tell less) is not compared.
    """
    found = []
    for key in sorted(one.keys() & other.keys() - IGNORED):
        if isinstance(one[key], Mapping) and isinstance(other[key], Mapping):
            found += [f"{key}.{line}" for line in differences(one[key], other[key])]
        elif one[key] != other[key]:
            found.append(f"{key}: {one[key]} then, {other[key]} now")
    return found
