"""Scores of submissions as JSON in the schema of Every Eval Ever, a shared format for results of many evaluations.

The schema's aggregate part holds what a cell is: a score with its interval and number of samples, the metric, and how
answers were made. A file is a submission, a result in it a cell. Its part for single samples is not written: it wants
every prompt's text and whether each answer is right, where rows hold a prompt's hash and graded scores.
"""

import hashlib
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from time import time

from pvcbench.board.site import Entry
from pvcbench.board.submission import Submission
from pvcbench.errors import UserError
from pvcbench.stats.intervals import LEVEL

SCHEMA = "0.3.0"  # of Every Eval Ever
COLLECTION, UNKNOWN = "pvcbench", "unknown"
INTERVAL = "of pvcbench.stats: Wilson's for zeros and ones of single items, else Student's t of cluster means"


def export(entries: Sequence[Entry], folder: Path) -> tuple[list[Path], list[tuple[str, str]]]:
    """Writes a file for each submission with scores; returns the paths, and the others with the reason."""
    paths, unfit = [], []
    for entry in entries:
        if not entry.scored:
            unfit.append((entry.one.stem, "an analysis or speeds have no score, which the schema demands"))
            continue
        if all(cell["score"] is None for cell in entry.about["cells"]):
            unfit.append((entry.one.stem, "no cell has a score, which the schema demands"))
            continue
        path = folder / place(entry.one)
        text = json.dumps(document(entry, time()), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; choose another folder with --export") from error
        paths.append(path)
    return paths, unfit


def place(one: Submission) -> Path:
    """Where the format keeps a file: by collection, developer and model, under a UUID that the submission fixes."""
    developer, name = model_of(one).split("/", 1)
    number = uuid.UUID(bytes=hashlib.sha256(one.content).digest()[:16], version=4)
    return Path("data") / COLLECTION / portable(developer) / portable(name) / f"{number}.json"


def portable(name: str) -> str:
    """A name that a folder may have anywhere."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name).strip("._") or UNKNOWN


def model_of(one: Submission) -> str:
    """The model as ORG/NAME; the organisation is unknown where the model is no name on the hub."""
    name = str(one.known["identity"]["model"]["name"])
    return name if re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII) else f"{UNKNOWN}/{name}"


def document(entry: Entry, now: float) -> dict:
    """A submission in the format's aggregate schema."""
    one, about = entry.one, entry.about
    model, begun = model_of(one), one.environment.get("started")
    made = {
        "schema_version": SCHEMA,
        "evaluation_id": f"{COLLECTION}.{about['task']}.{one.stem}/{model}/{now:.6f}",
        "retrieved_timestamp": f"{now:.6f}",
        "source_metadata": {
            "source_name": "pvcbench board",
            "source_type": "evaluation_run",
            "source_organization_name": one.manifest.by,
            "evaluator_relationship": "other",  # a submission does not say whose model it measured
            "additional_details": origin(entry),
        },
        "eval_library": {"name": "pvcbench", "version": one.manifest.pvcbench or UNKNOWN},
        "model_info": model_info(one, model),
        "evaluation_results": [result(entry, cell) for cell in about["cells"] if cell["score"] is not None],
    }
    if isinstance(begun, str):
        try:
            made["evaluation_timestamp"] = str(int(datetime.fromisoformat(begun).timestamp()))
        except ValueError:
            made["source_metadata"]["additional_details"]["begun"] = begun
    return made


def origin(entry: Entry) -> dict[str, str]:
    """What a reader needs beside the numbers: which run, what is missing, what was verified."""
    silent = [f"{cell['method']} at {cell['asked']}" for cell in entry.about["cells"] if cell["score"] is None]
    known = {"run": entry.one.manifest.run, "submission_sha256": entry.one.sha256, "commit": entry.one.manifest.commit}
    known |= {"state": ", ".join(entry.marks), "state_reason": entry.state.why, "note": entry.one.manifest.note}
    known |= {"missing": "; ".join(entry.missing), "cells_without_result": "; ".join(silent)}
    known |= {"full_cache_at_floor": entry.about["floor"]}
    return {key: value for key, value in known.items() if value}


def model_info(one: Submission, model: str) -> dict:
    """The model, as far as the run's identity tells."""
    known = one.known["identity"]["model"]
    hub = not model.startswith(f"{UNKNOWN}/")
    details = {"deployment_type": "self_deployed", "model_availability": "open_weights" if hub else UNKNOWN}
    details |= {key: str(known[key]) for key in ("weights", "dtype", "tokenizer") if known.get(key)}
    versions = one.environment.get("packages") or {}
    engine = {"name": "transformers", "version": str(versions.get("transformers") or UNKNOWN)}
    made = {"name": str(known["name"]), "id": model, "inference_engine": engine, "additional_details": details}
    return made | ({"developer": model.partition("/")[0]} if hub else {})


def result(entry: Entry, cell: Mapping) -> dict:
    """A cell as a result."""
    about, own = entry.about, f"{cell['method']}@{cell['budget']}"
    details = {"method": cell["method"], "budget": cell["budget"], "protocol": about["protocol"]}
    details |= {"prompt": about["tokens"], "seed": str(about["seed"])}
    details |= {"reads_the_answer": "true"} if cell["leaks"] else {}
    details |= {"full_cache": "true"} if cell["reference"] else {}
    for key, name in (("kept", "kept_share_of_bytes"), ("entries", "kept_share_of_entries")):
        details |= {} if cell[key] is None else {name: f"{cell[key] / 100:.6g}"}
    made = {
        "evaluation_result_id": f"{entry.one.stem}/{own}",
        "evaluation_name": f"{COLLECTION}.{about['task']}.{own}",
        "source_data": source(entry.one),
        "metric_config": metric(about),
        "score_details": score(about, cell),
        "generation_config": {"additional_details": details},
    }
    longest = entry.one.known["identity"]["task"].get("max_new_tokens")
    if type(longest) is int and longest > 0:
        made["generation_config"]["generation_args"] = {"max_tokens": longest}
    return made


def metric(about: Mapping) -> dict:
    """The metric and where its values lie."""
    name = about["metric"]
    own = name if name in ("accuracy", "perplexity") else f"{COLLECTION}.{about['task']}.{name.replace(' ', '_')}"
    least, most = (0.0, 1.0) if about["percent"] else (1.0, "Infinity") if about["lower"] else ("-Infinity", "Infinity")
    made = {"metric_id": own, "metric_name": name, "lower_is_better": about["lower"], "score_type": "continuous"}
    return made | {"min_score": least, "max_score": most, "metric_unit": "proportion" if about["percent"] else "points"}


def score(about: Mapping, cell: Mapping) -> dict:
    """The score in the metric's own scale with its interval, where it has one with two ends."""
    scale = 100 if about["percent"] else 1
    made = {"score": round(cell["score"] / scale, 8), "uncertainty": {"num_samples": cell["n"]}}
    if cell["low"] is not None and cell["high"] is not None:
        ends = {"lower": round(cell["low"] / scale, 8), "upper": round(cell["high"] / scale, 8)}
        made["uncertainty"]["confidence_interval"] = ends | {"confidence_level": LEVEL, "method": INTERVAL}
    if cell["n"] != cell["of"]:
        made["details"] = {"incomplete": f"{cell['n']} of {cell['of']} samples have a score"}
    return made


def source(one: Submission) -> dict:
    """The data that were asked about: a data set of the hub where the task names one."""
    task, own = one.known["identity"]["task"], one.known["config"]["task"]
    details = {"task_version": str(task.get("version"))} | ({"sha256": str(task["data"])} if task.get("data") else {})
    hub = own.get("source") if isinstance(own.get("source"), str) else ""
    if hub.startswith("hub:"):
        known = {"dataset_name": hub.split(":")[1], "source_type": "hf_dataset", "hf_repo": hub.split(":")[1]}
        return known | {"additional_details": details}
    name = own.get("source") or own.get("haystack") or own.get("path") or task["name"]
    shown = f"{task['name']}, {name}" if isinstance(name, str) and name != task["name"] else task["name"]
    return {"dataset_name": shown, "source_type": "other", "additional_details": details}
