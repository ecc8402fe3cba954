"""Any data set that a YAML file describes: from conf/data by its name, or your own by its path.

    pvcbench task=qa task.data=number_string method=h2o
    pvcbench task=qa task.data=my_questions.yaml method=h2o query_aware=false

A suite's sets take turns, the first question of each, the second of each, and so on; the headline is the mean of their
means. The prompt is filled, cut where the description says so if it is too long for the model, and wrapped in the chat
template. Where a cut leaves no exact end of the context, `query_aware=false` is refused.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pvcbench.config.compose import CONF
from pvcbench.errors import UserError
from pvcbench.places import user_path
from pvcbench.tasks import files
from pvcbench.tasks.base import Sample, Task, choice, flag, whole, words
from pvcbench.tasks.chat import MARKER
from pvcbench.tasks.conversation import first_of
from pvcbench.tasks.prompts import Prompt
from pvcbench.tasks.qa.description import Description
from pvcbench.tasks.qa.finding import describe, told
from pvcbench.tasks.qa.generator import Generator
from pvcbench.tasks.qa.generators import generator_of
from pvcbench.tasks.qa.rows import Item, item_of, items_of
from pvcbench.tasks.qa.scorers.registry import METRICS, require
from pvcbench.tasks.qa.sources import load


@dataclass(frozen=True)
class Set:
    """One data set with its questions: read, or made one by one by a generator."""

    about: Description
    items: Sequence[Item]
    generator: Generator | None
    checksum: str

    @property
    def size(self) -> int:
        """How many questions it has."""
        return self.generator.size if self.generator is not None else len(self.items)

    def item(self, seed: int, number: int) -> Item:
        """The question with this number."""
        if self.generator is None:
            return self.items[number]
        try:
            return item_of(self.about, self.generator.row(seed, number), str(number))
        except files.Refused as error:
            raise UserError(f"{self.about.name}, row {number}: {error}") from error


class Qa(Task):
    """Questions of a data set, or of some sets of a suite.

    `data`: a name in conf/data or in `data` of a --config-dir folder, or the path of a YAML file; `data_dir`: where its
    local files lie (by default beside the YAML file); `config`: another part of the hub's data set; `settings`: of a
    generator; `max_length`: tokens above which a prompt is cut, before the chat template; `parity`: score as the
    benchmark's own script does, mistakes included.
    """

    version, primary = 1, "score"
    shorten = "lower task.max_length if the data set says where it is cut, or choose shorter data"

    def __init__(
        self,
        data: str,
        data_dir: str | None = None,
        sets: Sequence[str] | str | None = None,
        config: str | None = None,
        settings: Mapping | None = None,
        max_length: int | None = None,
        max_new_tokens: int | None = None,
        parity: bool = False,
    ):
        own, name, path = describe(data, None if config is None else str(config))
        chosen = (
            list(own) if sets is None else [choice("task.sets", one, tuple(own)) for one in words("task.sets", sets)]
        )
        self.name = f"qa_{name}"
        self._about = {one: own[one] for one in own if one in chosen}
        if data_dir is not None and not (isinstance(data_dir, str | os.PathLike) and str(data_dir)):
            raise UserError(f"task.data_dir must be a folder or null, not {data_dir!r}")
        beside = None if path.parent == CONF / "data" else path.parent
        self._folder = beside if data_dir is None else user_path(data_dir)
        if data_dir is not None and not self._folder.is_dir():
            raise UserError(f"task.data_dir: there is no folder {self._folder}")
        self.max_length = None if max_length is None else whole("task.max_length", max_length, 2)
        self.max_new_tokens = None if max_new_tokens is None else whole("task.max_new_tokens", max_new_tokens)
        self.parity = flag("task.parity", parity)
        self.described = told(list(self._about.values()))
        self._suite, self._own = len(self._about) > 1, dict(settings or {})
        if self.has_turns and not all(one.rows.turns is not None for one in self._about.values()):
            raise UserError(f"task.sets: some sets of {name} are conversations and some are not: choose one kind")
        self.has_question = any(one.has_context for one in self._about.values())
        self._generators = {
            one: generator_of(about, self._own)
            for one, about in self._about.items()
            if about.source.generator is not None
        }
        if self._own and not self._generators:
            raise UserError(f"task.settings: {name} is read, not made: it has no generator with settings")
        self._path, self._loaded, self._order = path, None, []
        self._beside: dict[str, Item] = {}  # questions by sample, for what a prompt needs and a row does not

    @property
    def has_turns(self) -> bool:
        """Whether its questions are turns of conversations."""
        return any(one.rows.turns is not None for one in self._about.values())

    def validate(self) -> None:
        """Reads and checks all questions, and whether the packages that their metrics need are installed."""
        for about in self._about.values():
            for metric in about.metrics:
                require(metric)
        for one in self._sets().values():
            if one.generator is None and not one.items:
                raise UserError(f"{self._path}: {one.about.name} has no questions: look at rows.keep and at the data")

    def prepare(self, prompter) -> None:
        super().prepare(prompter)
        for generator in self._generators.values():
            generator.prepare(prompter.tokenizer, self._folder)

    def _sets(self) -> dict[str, Set]:
        """The sets with their questions; read once."""
        if self._loaded is None:
            self._loaded = {name: self._set(about) for name, about in self._about.items()}
            sizes = {name: one.size for name, one in self._loaded.items()}
            rounds = range(max(sizes.values()))
            self._order = [(name, number) for number in rounds for name in sizes if number < sizes[name]]
        return self._loaded

    def _set(self, about: Description) -> Set:
        generator = self._generators.get(about.name)
        if generator is not None:
            made = f"{type(generator).__name__} {generator.model_dump_json()} {generator.validate_data(self._folder)}"
            return Set(about, (), generator, hashlib.sha256(made.encode()).hexdigest())
        rows, checksum = load(about, self._folder)
        items, wrong = items_of(about, rows)
        files.refuse(f"{self._path.name}, {about.name}", wrong)
        return Set(about, items, None, checksum)

    def data_checksum(self) -> str:
        text = "".join(f"{name} {one.checksum}\n" for name, one in self._sets().items())
        return hashlib.sha256(text.encode()).hexdigest()

    def size(self, seed: int) -> int:
        return sum(one.size for one in self._sets().values())

    def sample(self, seed: int, index: int) -> Sample:
        sets = self._sets()
        name, number = self._order[index]
        about, item = sets[name].about, sets[name].item(seed, number)
        first = len(item.head) + item.context.find(item.needle)
        label = f"{name}/{item.id}" if self._suite else item.id
        self._beside[label] = item
        cluster = f"{name}/{item.cluster}" if self._suite and item.cluster else item.cluster
        shared = item.conversation if item.turn else item.text_sha256
        return Sample(
            id=label,
            cluster=cluster,
            context_id=f"{name}/{shared}" if self._suite and shared else shared,
            turns=item.turns,
            turn=item.turn,
            stratum=self._stratum(about, item),
            context=item.head + item.context if about.has_context else "",
            question=item.question,
            answers=item.answers,
            max_new_tokens=self.max_new_tokens or about.generate.max_new_tokens,
            stop=tuple(about.generate.stop),
            spans={"needle": (first, first + len(item.needle))} if item.needle else {},
            info=self._info(about, item),
            metric=next(iter(labels(about))),
        )

    def _stratum(self, about: Description, item: Item) -> str:
        """The data set of a sample: the suite's set, or the value of a column; none where items are averaged."""
        if self._suite:
            return "" if about.headline == "items" else about.name
        return item.stratum if about.headline == "strata" else ""

    def _info(self, about: Description, item: Item) -> dict:
        """What a row says of its question; with the output and the answers, all that scoring needs."""
        group = about.group or (item.stratum if about.headline != "strata" else "")
        info: dict[str, object] = {"set": about.name}
        info |= {"group": group} if group else {}
        info |= {"buckets": dict(item.buckets)} if item.buckets else {}
        info |= {"given": dict(item.given)} if item.given else {}
        if any(one.headline == "none" for one in self._about.values()):
            info["headline"] = about.headline != "none"
        return info

    def encode(self, sample: Sample) -> Prompt:
        """The sample as tokens; `context_tokens` is 0 where the cut left no exact end of the context."""
        about, prompter = self._about[sample.info["set"]], self.prompter
        if sample.turns:
            return self._turn(about, sample)
        frame = self._frame(about, sample)
        if about.cut is None:
            return self._tokens(about, frame, sample.context, sample.question, sample)
        before, after = frame
        asked = [length for length in (about.cut.tokens, self.max_length) if length is not None]
        limit = min(asked, default=None)
        if prompter.longest is None:
            return self._cut(about, frame, sample, limit)
        room = prompter.longest - sample.max_new_tokens
        held = room - len(prompter.tokenizer(before + after, add_special_tokens=False)["input_ids"])
        limit = held if limit is None else min(limit, held)
        while limit >= 2:
            prompt = self._cut(about, frame, sample, limit)
            if len(prompt.ids) <= room:
                return prompt
            limit -= len(prompt.ids) - room
        raise UserError(f"the model's {prompter.longest} tokens leave no room for a prompt of {about.name}")

    def _turn(self, about: Description, sample: Sample) -> Prompt:
        """A turn of a conversation; a cut of the first turn's prompt leaves room for all that may follow it."""
        prompter, chat, new = self.prompter, self.prompter.chat and about.chat, sample.max_new_tokens
        last = replace(sample, turn=len(sample.turns), question=sample.turns[-1].question)
        whole = prompter.following(last, chat, "")
        room = new + sum(len(one.asked) + max(new, len(one.answer)) for one in whole)
        first = self.encode(replace(first_of(sample), max_new_tokens=room))
        return prompter.continued(first, whole[: sample.turn - 1])

    def _frame(self, about: Description, sample: Sample) -> tuple[str, str]:
        """What stands before and after the prompt: chat template, system message, and the answer's prefix."""
        prompter, item = self.prompter, self._beside[sample.id]
        chat, system, prefix = prompter.chat and about.chat, item.system, item.prefix
        if not chat:
            joint = "\n" if prefix and not sample.question.endswith(("\n", " ")) else ""
            return (f"{system}\n\n" if system else ""), joint + prefix
        if not system:
            return prompter.before, prompter.after + prefix
        turns = [{"role": "system", "content": system}, {"role": "user", "content": MARKER}]
        before, found, after = prompter.template.render(turns).partition(MARKER)
        if not found or system.strip() not in before:
            raise UserError(
                "the chat template leaves out the system message that the data set has: set model.chat=false"
            )
        return before, after + prefix

    def _tokens(
        self,
        about: Description,
        frame: tuple[str, str],
        context: str,
        question: str,
        sample: Sample,
        exact: bool = True,
    ) -> Prompt:
        """A prompt whose context may be followed by a question that is told apart exactly."""
        before, after = frame
        chat = self.prompter.chat and about.chat
        if self._beside[sample.id].messages and chat:
            return self._conversation(self._beside[sample.id].messages)
        start = len(before)
        spans = {}
        for name, (first, last) in sample.spans.items():
            passage = sample.context[first:last]
            if passage in context:
                place = start + context.find(passage)
                spans[name] = (place, place + len(passage))
        text = before + context + question + after
        prompt = self.prompter.tokens(text, start + len(context), spans, not chat, start)
        told_apart = exact and about.has_context and not about.prompt.asks_first
        return prompt if told_apart else replace(prompt, context_tokens=0)

    def _conversation(self, turns: Sequence[Mapping]) -> Prompt:
        """A conversation in the chat template: all turns but the last are the context."""
        render = self.prompter.template.render
        whole_text, context = render(turns), render(turns[:-1], add_generation_prompt=False)
        prompt = self.prompter.tokens(whole_text, len(context), special=False)
        return prompt if whole_text.startswith(context) else replace(prompt, context_tokens=0)

    def _cut(self, about: Description, frame: tuple[str, str], sample: Sample, limit: int | None) -> Prompt:
        """The prompt without its middle, or with a shorter context, if it has more tokens than the limit."""
        context, question, tokenizer = sample.context, sample.question, self.prompter.tokenizer
        coded = tokenizer(context + question, return_offsets_mapping=True)
        over = 0 if limit is None else len(coded["input_ids"]) - limit
        if over <= 0:
            return self._tokens(about, frame, context, question, sample)
        if about.cut.at == "middle":
            half = limit // 2
            first = self.prompter.decode(coded["input_ids"][:half])
            last = self.prompter.decode(coded["input_ids"][-half:])
            if last.endswith(question):
                return self._tokens(about, frame, first + last.removesuffix(question), question, sample)
            return self._tokens(about, frame, first + last, "", sample, exact=False)
        head = len(self._beside[sample.id].head)
        places = [end for _, end in tokenizer(context[head:], return_offsets_mapping=True)["offset_mapping"] if end]
        if over >= len(places):
            return self._tokens(about, frame, context[:head], question, sample)
        body = context[head:]
        body = body[: places[-over - 1]] if about.cut.at == "end" else body[places[over - 1] :]
        return self._tokens(about, frame, context[:head] + body, question, sample)

    def protocol_record(self) -> dict:
        return {"parity": self.parity}

    def score(self, sample: Sample, output: str) -> dict[str, float]:
        about, given = self._about[sample.info["set"]], sample.info.get("given") or {}
        made = {}
        for label, (name, options) in labels(about).items():
            metric = METRICS[name]
            score = metric.parity if self.parity and metric.parity is not None else metric.score
            made[label] = float(score(output, sample.answers, {**given, **options}))
        return made


def labels(about: Description) -> dict[str, tuple[str, dict]]:
    """The metrics of a data set by what rows call them: the name with the options that tell two of them apart."""
    return {
        "_".join([name, *(str(value) for value in options.values() if not isinstance(value, list))]): (name, options)
        for name, options in about.variants
    }
