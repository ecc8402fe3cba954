"""LongBench v1 and LongBench-E (arXiv 2308.14508): the original's prompts, truncation, ends and metrics.

    python -m pvcbench task=longbench task.data_dir=data.zip 'task.sets=[qasper,trec]' method=h2o

A prompt is formatted, tokenized, cut in the middle if it is too long, wrapped in the chat template (six sets never
are), and tokenized again. Where the context is compressed alone, it ends where the template's `{context}` ends.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from pvcbench.errors import UserError
from pvcbench.tasks.base import Sample, Task, choice, flag, whole, words
from pvcbench.tasks.longbench.datasets import E_SETS, SETS, Set, bucket, load
from pvcbench.tasks.longbench.metrics import best, require
from pvcbench.tasks.prompts import Prompt


class LongBench(Task):
    """Samples take turns over the sets: the first of each, the second of each, and so on.

    `max_length` counts the formatted prompt's tokens, before the chat template, as the original does; None: the
    model's longest sequence less the answer and the template, and a little less where tokenizing the cut text again
    gives more tokens than it was cut to.
    """

    name, version, primary, shorten = "longbench", 1, "score", "lower task.max_length"

    def __init__(
        self,
        sets: Sequence[str] | str | None = None,
        e: bool = False,
        data_dir: str | None = None,
        max_length: int | None = None,
    ):
        known = E_SETS if e else tuple(SETS)
        chosen = {choice("task.sets", name, known) for name in (known if sets is None else words("task.sets", sets))}
        if not chosen:
            raise UserError("task.sets must name a set")
        self.sets, self.e = [name for name in SETS if name in chosen], flag("task.e", e)
        self.max_length = None if max_length is None else whole("task.max_length", max_length, 2)
        if data_dir is not None and not (isinstance(data_dir, str | os.PathLike) and str(data_dir)):
            raise UserError(f"task.data_dir must be a folder, data.zip or null, not {data_dir!r}")
        self._data_dir = data_dir
        self._loaded: tuple[dict[str, list[dict]], str] | None = None
        self._order: list[tuple[str, int]] = []

    def validate(self) -> None:
        """Reads and checks all items, and whether the packages that their metrics need are installed."""
        for name in self.sets:
            require(SETS[name].metric)
        self._data()

    def prepare(self, prompter) -> None:
        for name in self.sets:
            require(SETS[name].metric)
        super().prepare(prompter)

    def _data(self) -> tuple[dict[str, list[dict]], str]:
        """The items of each set and a hash of them all; read once."""
        if self._loaded is None:
            items, digest = {}, hashlib.sha256()
            for name in self.sets:
                items[name], part = load(SETS[name], self.e, self._data_dir)
                digest.update(f"{name} {part}\n".encode())
                _name(items[name])
            rounds = range(max(map(len, items.values())))
            self._order = [(name, number) for number in rounds for name in items if number < len(items[name])]
            self._loaded = items, digest.hexdigest()
        return self._loaded

    def data_checksum(self) -> str:
        return self._data()[1]

    def size(self, seed: int) -> int:
        return sum(map(len, self._data()[0].values()))

    def sample(self, seed: int, index: int) -> Sample:
        items, _ = self._data()
        name, number = self._order[index]
        item, chosen = items[name][number], SETS[name]
        head, tail = chosen.parts
        return Sample(
            id=f"{name}/{item['name']}",
            cluster=hashlib.sha256(item["context"].encode()).hexdigest()[:16],
            stratum=name,
            context=head + item["context"],
            question=tail.replace("{input}", item["input"]),
            answers=tuple(item["answers"]),
            max_new_tokens=chosen.max_new_tokens,
            info=self._info(item, chosen),
            metric=chosen.metric,
        )

    def _info(self, item: dict, chosen: Set) -> dict:
        """What a row says of its item; with the output and the answers, all that scoring needs."""
        info = {"set": chosen.name, "group": chosen.group, "length": item.get("length")}
        info |= {"language": item.get("language") or chosen.language, "headline": chosen.headline}
        info |= {"bucket": bucket(item["length"])} if self.e else {}
        return info | ({"classes": list(item["all_classes"])} if chosen.metric == "classification" else {})

    def encode(self, sample: Sample) -> Prompt:
        """The sample as tokens; `context_tokens` is 0 where the cut left no exact end of the context."""
        prompter, chosen = self.prompter, SETS[sample.info["set"]]
        ends = tuple(prompter.tokenizer.encode("\n", add_special_tokens=False)[-1:]) if chosen.name == "samsum" else ()
        if self.max_length is not None or prompter.longest is None:
            return replace(self._prompt(sample, chosen, self.max_length), ends=ends)
        room = prompter.longest - chosen.max_new_tokens
        before, after = self._frame(chosen)
        limit = room - len(prompter.tokenizer(before + after, add_special_tokens=False)["input_ids"])
        while limit >= 2:
            prompt = self._prompt(sample, chosen, limit)
            if len(prompt.ids) <= room:
                return replace(prompt, ends=ends)
            limit -= len(prompt.ids) - room
        raise UserError(
            f"the model's {prompter.longest} tokens leave no room for a prompt of LongBench's {chosen.name}"
        )

    def _frame(self, chosen: Set) -> tuple[str, str]:
        """What stands before and after the prompt: the chat template, except for the sets that go without."""
        return (self.prompter.before, self.prompter.after) if self.prompter.chat and chosen.chat else ("", "")

    def _prompt(self, sample: Sample, chosen: Set, limit: int | None) -> Prompt:
        before, after = self._frame(chosen)
        text, end = self._cut(sample, limit)
        wrapped = bool(before or after)
        prompt = self.prompter.tokens(before + text + after, len(before) + (end or 0), special=not wrapped)
        return prompt if end is not None else replace(prompt, context_tokens=0)

    def _cut(self, sample: Sample, limit: int | None) -> tuple[str, int | None]:
        """The prompt without its middle, if it has more tokens than the limit, and where its context ends, if exact."""
        text = sample.context + sample.question
        ids = self.prompter.tokenizer(text)["input_ids"]
        if limit is None or len(ids) <= limit:
            return text, len(sample.context)
        half = limit // 2
        first, last = self.prompter.decode(ids[:half]), self.prompter.decode(ids[-half:])
        whole = last.endswith(sample.question)
        return first + last, len(first) + len(last) - len(sample.question) if whole else None

    def score(self, sample: Sample, output: str) -> dict[str, float]:
        chosen = SETS[sample.info["set"]]
        classes = sample.info.get("classes") or ()
        return {chosen.metric: best(chosen.name, chosen.metric, output, sample.answers, classes)}


def _name(items: list[dict]) -> None:
    """Gives each item a name of its own: its `_id`, or its place where that is missing or repeats."""
    times = Counter(str(item.get("_id")) for item in items)
    for number, item in enumerate(items):
        own = item.get("_id") not in (None, "") and times[str(item["_id"])] == 1
        item["name"] = str(item["_id"]) if own else str(number)
    if len({item["name"] for item in items}) < len(items):  # an `_id` that looks like another item's place
        for number, item in enumerate(items):
            item["name"] = str(number)
