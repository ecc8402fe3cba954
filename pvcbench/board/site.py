"""The board as static HTML: one page with a table that sorts and filters, and a page and a copy of each submission.

Pages load nothing, run one script of ours whose hash their policy names, and escape every text of a submission.
"""

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import jinja2
import yaml
from markupsafe import Markup

from pvcbench.board import cells
from pvcbench.board.agreement import Comparison
from pvcbench.board.archive import SUFFIX
from pvcbench.board.submission import Submission
from pvcbench.board.verifying import DIFFERS, Asked, State
from pvcbench.errors import UserError
from pvcbench.runs import environment
from pvcbench.version import VERSION

FOLDER = Path(__file__).parent / "pages"
FILTERS = {"task": "Task", "model": "Model", "protocol": "Protocol", "method": "Method", "state": "State"}
OURS = ".pvcbench-board"  # marks a folder whose pages the next board may replace


@dataclass(frozen=True)
class Entry:
    """A submission with all that its pages show."""

    one: Submission
    state: State
    comparisons: Sequence[Comparison]
    about: Mapping  # `cells.summary`, or `cells.analysed`
    scored: bool

    @property
    def conflicts(self) -> list[Comparison]:
        """The other submissions of the run whose rows differ."""
        return [found for found in self.comparisons if found.differ]

    @property
    def missing(self) -> list[str]:
        """What the run lacks: by its files, by what its measurer says, and by how many samples its task has."""
        more = [self.state.found["lacks"]] if "lacks" in self.state.found else []
        return list(dict.fromkeys([*self.one.missing, *self.one.manifest.missing, *more]))

    @property
    def marks(self) -> list[str]:
        """The state in plain words, and what else must be known of it."""
        found = [self.state.state]
        found += ["conflict"] if self.conflicts else []
        return found + (["incomplete"] if self.missing or not self.one.complete else [])


def entry(one: Submission, state: State, comparisons: Sequence[Comparison]) -> Entry:
    """Summarises a submission's rows; raises an error of any kind where they make no table."""
    scored = cells.scored(one)
    about = cells.summary(one) if scored else cells.analysed(one)
    return Entry(one, state, comparisons, about, scored)


def write(out: Path, entries: Sequence[Entry], left_out: Sequence[tuple[str, str]], asked: Asked) -> Path:
    """Writes the board to a folder and returns its first page; raises UserError where it cannot be written."""
    try:
        prepare(out)
        for one in entries:
            (out / "files" / f"{one.one.stem}{SUFFIX}").write_bytes(one.one.content)
            page = rendered("one.html", depth="../", entry=one, **texts(one))
            (out / "runs" / f"{one.one.stem}.html").write_text(page, encoding="utf-8")
        lines = sorted((line for one in entries if one.scored for line in lines_of(one)), key=place)
        (out / "board.json").write_text(json.dumps(lines, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        page = rendered("index.html", depth="", entries=entries, lines=lines, left_out=left_out, **conditions(asked),
                        filters=options(lines))  # fmt: skip
        (out / "index.html").write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}; choose another folder with --out") from error
    return out / "index.html"


def prepare(out: Path) -> None:
    """An empty folder for the board: a new one, or one that holds an older board, whose pages are removed."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is no folder: choose another one with --out")
    if out.is_dir() and any(out.iterdir()) and not (out / OURS).is_file():
        raise UserError(f"{out} holds other files: choose a new folder with --out")
    for name in ("files", "runs"):
        (out / name).mkdir(parents=True, exist_ok=True)
        for path in (out / name).iterdir():
            if path.suffix in (".html", ".zip") and path.is_file():
                path.unlink()
    (out / OURS).write_text("`pvcbench board` wrote this folder and may replace its pages.\n", encoding="utf-8")


def lines_of(one: Entry) -> list[dict]:
    """The lines of a submission in the table, as data."""
    shared = ("task", "tokens", "model", "protocol", "metric", "lower", "percent", "seed")
    known = {key: one.about[key] for key in shared}
    known |= {"run": one.one.manifest.run, "stem": one.one.stem, "by": one.one.manifest.by}
    known |= {"state": one.state.state, "marks": one.marks, "why": one.state.why, "floor": one.about["floor"]}
    return [{**known, **cell} for cell in one.about["cells"]]


def place(line: Mapping) -> tuple:
    """Where a line stands: beside those that it compares with, larger sizes and better scores first."""
    kept, score = line["kept"] or 0.0, line["score"]
    rank = math.inf if score is None else score if line["lower"] else -score
    return line["task"], line["model"], line["protocol"], line["tokens"], not line["reference"], -round(kept), rank


def options(lines: Sequence[Mapping]) -> list[dict]:
    """What each filter can be set to."""
    found = []
    for key, label in FILTERS.items():
        values = sorted({mark for line in lines for mark in line["marks"]} if key == "state" else
                        {line[key] for line in lines})  # fmt: skip
        found.append({"key": key, "label": label, "choices": values})
    return found


def conditions(asked: Asked) -> dict:
    """When and where the board was made, and how submissions were drawn."""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return {"asked": asked, "date": now, "processor": environment.processor()}


def texts(one: Entry) -> dict:
    """The files of a submission that its page shows as texts."""
    known = one.one
    return {
        "config": yaml.safe_dump(dict(known.known["config"]), sort_keys=False, allow_unicode=True),
        "environment": json.dumps(known.environment, indent=2, ensure_ascii=False) if known.environment else None,
        "manifest": json.dumps(known.manifest.model_dump(), indent=2, ensure_ascii=False),
        "file": f"../files/{known.stem}{SUFFIX}",
        "size": len(known.content),
        "samples": int(known.rows["sample"].nunique()),
    }


def rendered(name: str, **values) -> str:
    """A page; every value in it is escaped."""
    script = (FOLDER / "board.js").read_text(encoding="utf-8")
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    loader = jinja2.FileSystemLoader(FOLDER)
    setup = {"autoescape": True, "undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    template = jinja2.Environment(loader=loader, **setup).get_template(name)
    return template.render(
        version=VERSION,
        policy=f"default-src 'none'; script-src 'sha256-{allowed}'; style-src 'unsafe-inline'; base-uri 'none'; "
        "form-action 'none'",
        style=Markup((FOLDER / "site.css").read_text(encoding="utf-8")),
        script=Markup(script),
        DIFFERS=DIFFERS,
        **values,
    )
