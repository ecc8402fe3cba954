"""The sets of LongBench v1: what each is, its prompt, and its items from a folder, a zip or the hub."""

import hashlib
import importlib.resources
import json
import re
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from pvcbench.errors import UserError
from pvcbench.places import user_path
from pvcbench.tasks import files
from pvcbench.tasks.files import Text

HUB = "Xnhyacinth/LongBench"  # the data set's own copy there is a loading script, which `datasets` no longer runs
ORIGINAL = "data.zip of the data set THUDM/LongBench on the hub (https://huggingface.co/datasets/THUDM/LongBench)"


def _one_or_more(value: object) -> object:
    return [value] if isinstance(value, str) else value


class Item(BaseModel):
    """What the benchmark reads of an item; other keys may stand beside. Descriptions say what is wanted."""

    model_config = ConfigDict(strict=True)

    context: Text = Field(description="text")
    input: Text = Field("", description="the question as text")
    answers: Annotated[list[Text], BeforeValidator(_one_or_more), Field(min_length=1)] = Field(
        description="a list of texts that is not empty"
    )
    length: int | None = Field(None, description="a whole number")
    language: Text | None = Field(None, description="text")
    all_classes: list[Text] | None = Field(None, description="a list of texts")


@dataclass(frozen=True)
class Set:
    """One data set; sizes in tokens of the model."""

    name: str
    group: str
    metric: str
    max_new_tokens: int
    language: str = "en"
    chat: bool = True  # whether its prompt is wrapped in a chat template

    @property
    def headline(self) -> bool:
        """Whether it is one of the 16 English and code sets that papers average over."""
        return self.language != "zh"

    @property
    def parts(self) -> tuple[str, str]:
        """The prompt before and after the context; the second holds `{input}` where there is a question."""
        head, _, tail = prompts()[self.name].partition("{context}")
        return head, tail


SETS = {
    row[0]: Set(*row)
    for row in (
        ("narrativeqa", "single-doc QA", "qa_f1", 128),
        ("qasper", "single-doc QA", "qa_f1", 128),
        ("multifieldqa_en", "single-doc QA", "qa_f1", 64),
        ("multifieldqa_zh", "single-doc QA", "qa_f1_zh", 64, "zh"),
        ("hotpotqa", "multi-doc QA", "qa_f1", 32),
        ("2wikimqa", "multi-doc QA", "qa_f1", 32),
        ("musique", "multi-doc QA", "qa_f1", 32),
        ("dureader", "multi-doc QA", "rouge_l_zh", 128, "zh"),
        ("gov_report", "summarization", "rouge_l", 512),
        ("qmsum", "summarization", "rouge_l", 512),
        ("multi_news", "summarization", "rouge_l", 512),
        ("vcsum", "summarization", "rouge_l_zh", 512, "zh"),
        ("trec", "few-shot", "classification", 64, "en", False),
        ("triviaqa", "few-shot", "qa_f1", 32, "en", False),
        ("samsum", "few-shot", "rouge_l", 128, "en", False),
        ("lsht", "few-shot", "classification", 64, "zh", False),
        ("passage_count", "synthetic", "count", 32),
        ("passage_retrieval_en", "synthetic", "retrieval", 32),
        ("passage_retrieval_zh", "synthetic", "retrieval_zh", 32, "zh"),
        ("lcc", "code", "code_similarity", 64, "code", False),
        ("repobench-p", "code", "code_similarity", 64, "code", False),
    )
}
NOT_IN_E = ("narrativeqa", "multifieldqa_zh", "musique", "dureader", "qmsum", "vcsum", "lsht", "passage_retrieval_zh")
E_SETS = tuple(name for name in SETS if name not in NOT_IN_E)


@cache
def prompts() -> dict[str, str]:
    """The original prompt of each set, with `{context}` and, where there is one, `{input}`."""
    text = (importlib.resources.files("pvcbench.tasks.longbench") / "prompts.json").read_text(encoding="utf-8")
    return json.loads(text)


def bucket(length: int) -> str:
    """LongBench-E's class of an item's length (in words, characters of Chinese)."""
    return "0-4k" if length < 4000 else "4-8k" if length < 8000 else "8k+"


def load(chosen: Set, e: bool, source: str | None) -> tuple[list[dict], str]:
    """A set's items (of LongBench-E if `e`) and a hash of them; source: a folder, a zip, or None for the hub.

    All items are checked before any is used; the first that are wrong are listed.
    """
    if source is None:
        name, wrong = f"{HUB}{'-e' * e}, {chosen.name}", []
        numbered = [(f"item {number}", item) for number, item in enumerate(_from_hub(chosen, e), start=1)]
    else:
        name = f"{chosen.name}_e.jsonl" if e else f"{chosen.name}.jsonl"
        content = _content(user_path(source), name, e)
        name = str(user_path(source) / name)
        numbered, wrong = _parsed(content, name)
    originals, found = [], []
    for place, item in numbered:
        try:
            originals.append(_unformatted(item, chosen))
            made, problems = _checked(originals[-1], chosen, e)
            found.append(made)
        except files.Refused as error:
            problems = [str(error)]
        wrong += [f"{place}: {one}" for one in problems]
    files.refuse(name, wrong, f"The original is in {ORIGINAL}; task.data_dir names it")
    if not found:
        raise UserError(f"LongBench's {chosen.name} holds no items: get it again, it is in {ORIGINAL}")
    if source is None:
        content = json.dumps(originals, sort_keys=True, ensure_ascii=False).encode()
    return found, hashlib.sha256(content).hexdigest()


def _content(source: Path, file: str, e: bool) -> bytes:
    """The bytes of a set's file in a folder or in the original zip."""
    if source.is_dir():
        for path in (source / file, source / "data" / file):
            if path.is_file():
                return path.read_bytes()
        known = {path.name for folder in (source, source / "data") for path in folder.glob("*.jsonl")}
    elif source.is_file():
        try:
            with zipfile.ZipFile(source) as archive:
                known = {name.removeprefix("data/") for name in archive.namelist()}
                if file in known:
                    return archive.read(f"data/{file}" if f"data/{file}" in archive.namelist() else file)
        except zipfile.BadZipFile as error:
            raise UserError(f"task.data_dir: {source} is no zip file: get it again, it is {ORIGINAL}") from error
    else:
        raise UserError(f"task.data_dir: there is no {source}; name a folder with {file}, or {ORIGINAL}")
    there = [name for name in SETS if (f"{name}_e.jsonl" if e else f"{name}.jsonl") in known]
    fewer = f"take what is there with 'task.sets=[{','.join(there)}]'" if there else "see task.data_dir"
    raise UserError(f"{source} has no {file}: unpack it from {ORIGINAL}, or {fewer}")


def _parsed(content: bytes, file: str) -> tuple[list[tuple[str, dict]], list[str]]:
    """The objects of a file, each with its place, and what is wrong with the lines that are none."""
    items, wrong = [], []
    for number, line in files.lines(content, file):
        try:
            items.append((f"line {number}", files.item(line, as_written=False)))
        except files.Refused as error:
            wrong.append(f"line {number}: {error}")
    return items, wrong


def _from_hub(chosen: Set, e: bool) -> list[dict]:
    """A set's items from the hub, as data only: no script of theirs is run."""
    import datasets

    place = f"{HUB}-e" if e else HUB
    try:
        items = [dict(item) for item in datasets.load_dataset(place, chosen.name, split="test")]
    except Exception as error:  # whatever a hub, a proxy, a cache or a disk can do
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"LongBench's {chosen.name} cannot be loaded from {place} ({reason}): set task.data_dir to a folder with "
            f"{chosen.name}{'_e' * e}.jsonl or to a zip that holds it, {ORIGINAL}, or name other sets in task.sets"
        ) from error
    return items


def _unformatted(item: dict, chosen: Set) -> dict:
    """An item of the hub's copy, or of a file made from it, with its original context and input.

    That copy has the prompt written around both already, cut into `context`, `question` and `answer_prefix`, whose
    concatenation is the original prompt; where there is no `answer_prefix`, `question` is the input as it was. Raises
    `Refused` where the prompt stands in the context in another way: it would be written twice.
    """
    asked, context = item.get("input", item.get("question")) or "", item.get("context")
    if not isinstance(asked, str) or not isinstance(context, str):
        return item
    head = chosen.parts[0].strip()
    if "answer_prefix" not in item:
        if head and context.strip().startswith(head):
            raise files.Refused("context: starts with the set's own instruction, wanted the bare text")
        return item | {"input": asked}
    if not isinstance(item["answer_prefix"], str):
        raise files.Refused(f"answer_prefix: found {files.shown(item['answer_prefix'])}, wanted text")
    head, tail = chosen.parts
    before, _, after = tail.partition("{input}")
    whole = f"{context}{asked}{item['answer_prefix']}"
    ends = (len(context) - size for size in reversed(range(len(before) + 1)))
    for end in ends:
        rest = whole[end:]
        known = rest[: len(before)] == before and rest[len(before) :].endswith(after) and end >= len(head)
        if known and whole.startswith(head) and ("{input}" in tail or rest == before):
            found = rest[len(before) : len(rest) - len(after)]
            kept = {key: value for key, value in item.items() if key not in ("question", "answer_prefix")}
            return kept | {"context": whole[len(head) : end], "input": found}
    raise files.Refused(f"the prompt is worded in a way not known here, wanted that of {HUB} or a bare context")


def _checked(item: dict, chosen: Set, e: bool) -> tuple[dict, list[str]]:
    """The item with its values as the benchmark reads them, and what is wrong with it."""
    read = [key for key in Item.model_fields if key != "all_classes" or chosen.metric == "classification"]
    wrong = files.problems(Item, {key: item[key] for key in read if key in item})
    if wrong:
        return item, wrong
    if item.get("dataset") not in (None, chosen.name, f"{chosen.name}_e"):
        return item, [f"dataset: found {files.shown(item['dataset'])}, wanted {chosen.name}: a line of another set"]
    item = item | Item.model_validate({key: item[key] for key in read if key in item}).model_dump()
    if "{input}" in chosen.parts[1] and not item["input"].strip():
        wrong.append("input: missing or empty, wanted the question as text (`question` in copies of the hub)")
    if e and item["length"] is None:
        wrong.append("length: missing, wanted a whole number, which LongBench-E sorts by")
    if chosen.metric == "classification" and not item["all_classes"]:
        wrong.append("all_classes: missing, wanted the names of the classes")
    marks = {"retrieval": "Paragraph ", "retrieval_zh": "段落", "count": ""}
    if chosen.metric in marks and not all(re.search(rf"{marks[chosen.metric]}\d", one) for one in item["answers"]):
        wrong.append(f"answers: found {files.shown(item['answers'])}, wanted {marks[chosen.metric]}and a number")
    return item, wrong
