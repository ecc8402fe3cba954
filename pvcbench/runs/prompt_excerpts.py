"""Excerpts of prompts, `samples.jsonl` in a run's folder: what a reader of answers needs to see of what was asked.

`pvcbench excerpts results/FOLDER...` makes those that older runs lack from their config.yaml.

Rows hold a hash of a prompt's tokens and no text. A line here has the question, and of the prompt the start, what
surrounds the named spans such as the needle, and the end: a few hundred characters, since texts may be under a licence.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from hydra.errors import InstantiationException
from hydra.utils import get_method

from pvcbench.errors import UserError
from pvcbench.evaluation.item import WorkItem
from pvcbench.evaluation.kinds import KINDS
from pvcbench.runs import rescore
from pvcbench.runs.rows import load_table
from pvcbench.runs.stored import stored
from pvcbench.tasks.base import Sample
from pvcbench.tasks.draws import problem_of, samples_of
from pvcbench.tasks.prompts import Prompt, Prompter

ENDS, AROUND = 60, 40  # tokens shown at each end, and on each side of a span's ends
MOST_SPANS, LONGEST_QUESTION = 8, 500


def pieces(tokenizer, ids: Sequence[int], spans: Mapping[str, tuple[int, int]]) -> list[dict]:
    """The shown parts of a prompt in order, cut where a span begins or ends: token range, text, and span or null."""
    ids, spans = list(ids), dict(list(spans.items())[:MOST_SPANS])
    edges = [edge for span in spans.values() for edge in span]
    wanted = [(0, ENDS), (len(ids) - ENDS, len(ids)), *((edge - AROUND, edge + AROUND) for edge in edges)]
    found = []
    for start, end in merged(wanted, len(ids)):
        for first, last in pairwise(sorted({start, end, *(edge for edge in edges if start < edge < end)})):
            name = next((name for name, (a, b) in spans.items() if a <= first and last <= b), None)
            before, through = (tokenizer.decode(ids[start:stop]) for stop in (first, last))
            found.append({"from": first, "to": last, "text": through[len(before) :], "span": name})
    return found


def merged(ranges: Iterable[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    """Ranges within [0, length) in order, those that touch joined."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted((max(0, start), min(length, end)) for start, end in ranges):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], end)
        elif start < end:
            joined.append((start, end))
    return joined


def line(sample: Sample, prompt: Prompt, tokenizer) -> dict:
    """What is stored of one sample's prompt."""
    known = {"sample": sample.id, "prompt_sha256": prompt.sha256, "tokens": len(prompt.ids)}
    known |= {"context_tokens": prompt.context_tokens, "question": sample.question[:LONGEST_QUESTION]}
    return known | {"excerpt": pieces(tokenizer, prompt.ids, prompt.spans)}


def read(folder: Path) -> dict[str, dict]:
    """The excerpts of a run's folder by sample, of all writers; lines that a kill tore are left out."""
    found = {}
    for path in sorted(folder.glob("samples*.jsonl")):
        for text in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                known = json.loads(text)
                found[known["sample"]] = known
            except (ValueError, KeyError, TypeError):
                continue
    return found


def add(rows_path: Path, work: Iterable[WorkItem], tokenizer) -> None:
    """Adds what is missing of the samples that are measured to the file beside their rows.

    No result depends on it: that it cannot be written is only said.
    """
    path = rows_path.with_name(rows_path.name.replace("rows", "samples", 1))
    try:
        known = read(path.parent)
        new = [line(item.sample, item.prompt, tokenizer) for item in work if item.sample.id not in known]
        torn = path.exists() and not path.read_bytes().endswith(b"\n")
        with path.open("a", encoding="utf-8") as file:
            file.write("\n" * torn + written(new))
    except OSError as error:
        print(f"pvcbench: no prompt excerpts in {path}: {error.strerror}; no result needs them", file=sys.stderr)


def written(lines: Iterable[Mapping]) -> str:
    """Lines of JSON."""
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def prompter_of(model: Mapping) -> Prompter:
    """The prompter of a model's configuration, without its weights, as its loader makes it."""
    target = model.get("_target_")
    try:
        make = getattr(get_method(target), "prompter", None)
    except (ImportError, InstantiationException):  # there is no such function here
        make = None
    if make is None:
        raise UserError(
            f"a model made by {target!r} has no tokenizer that can be built from config.yaml: leave the run out"
        )
    return make(model)


def fill(folder: Path) -> str:
    """Writes what a run's folder lacks and says what it did.

    Raises ValueError, with nothing written, if a prompt made today is not the one that its rows saw.
    """
    rows = load_table(folder)
    wanted = dict(zip(rows["sample"], rows["prompt_sha256"], strict=True))
    for known in read(folder).values():
        wanted.pop(known["sample"], None)
    config, task = stored(folder)["config"], rescore.task_of(folder)
    if not KINDS[task.kind].excerpts:
        return f"a {task.name} run has no prompts to show: nothing to do"
    if not wanted:
        return "has its excerpts: nothing to do"
    prompter = prompter_of(config["model"])
    task.prepare(prompter)
    lines = []
    sampling = config.get("sampling") or {}
    draws = None if sampling.get("temperature") is None else sampling["n"]
    every = range(task.size(config["seed"]))
    for sample in (one for index in every for one in samples_of(task, config["seed"], index, draws)):
        if sample.id in wanted:
            prompt = task.encode(problem_of(sample))
            if prompt.sha256 != wanted.pop(sample.id):
                raise ValueError(f"the prompt of sample {sample.id} is another today (data or tokenizer differ)")
            lines.append(line(sample, prompt, prompter.tokenizer))
    if wanted:
        raise ValueError(f"sample {min(wanted)} is not among the task's today (its data differ)")
    with rescore.locked(folder), (folder / "samples.jsonl").open("a", encoding="utf-8") as file:
        file.write(written(lines))
    return f"{len(lines)} excerpts written"
