"""What the YAML file of a data set may say.

    source: {local: questions.jsonl}
    columns: {context: text, input: question, answers: answers}
    prompt: {text: "{context}\\n\\n{input}"}
    generate: {max_new_tokens: 32}
    metric: contains

A suite has `sets`: a mapping of names to what each set has of its own; everything else is theirs together.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

PLACE = re.compile(r"\{\{(\w+)\}\}|\{([A-Za-z_]\w*)\}")  # {{x}}, which is written {x}; {x}, which a column fills


def _one_or_more(value: object) -> object:
    return [value] if isinstance(value, str) else value


Texts = Annotated[list[str], BeforeValidator(_one_or_more)]


class Part(BaseModel):
    """A part of the file: nothing may stand in it that is not listed here."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Source(Part):
    """Where rows come from: the hub, files of the user's, or a generator."""

    hub: str | None = Field(None, description="a data set of the hub such as ORG/NAME")
    config: str | None = Field(None, description="the hub's name for a part of the data set")
    revision: str | None = Field(None, description="a commit or tag of the hub")
    split: str = Field("test", description="a split of the hub such as test")
    features: dict[str, Any] | None = Field(None, description="a mapping of columns to string, int64 or [string]")
    local: str | None = Field(None, description="a file or folder: .jsonl, .json, .parquet, or .gz of the first two")
    examples: str | None = Field(None, description="a file of examples, for functions of rows.derive that show some")
    generator: str | None = Field(None, description="the name of a generator")
    settings: dict[str, Any] = Field({}, description="a mapping of the generator's settings")

    @model_validator(mode="after")
    def _one_place(self):
        if (self.generator is None) == (self.hub is None and self.local is None):
            raise ValueError("wanted hub or local (or both), or a generator")
        return self


class Rows(Part):
    """How the objects of a file become rows: a question each."""

    field: str | None = Field(None, description="the key of a JSON file that holds the list")
    explode: Texts = Field([], description="a column that holds a list of objects, or columns that hold lists")
    turns: str | None = Field(None, description="a column that holds a list of objects: the turns of a conversation")
    parse: Literal["python_literal"] | None = Field(None, description="python_literal, or leave it out")
    keep: dict[str, Any] = Field({}, description="a mapping of columns to the values of which rows are kept")
    derive: Texts = Field([], description="names of functions that add columns")
    answer_after: str | None = Field(None, description="the mark in the answers' column after which the answer stands")


class Choices(Part):
    """The choices of a question, which fill {A}, {B}, ... of the prompt."""

    columns: str | list[str] = Field(description="a column that holds a list, or a column for each choice")
    gold: Literal["letter", "text", "number"] = Field("letter", description="letter, text or number (from 0)")


class Prompt(Part):
    """The prompt; `{context}` divides what is compressed alone from the question."""

    text: str | None = Field(None, description="text with {context}, {input} and other places that columns fill")
    next: str | None = Field(None, description="text of what later turns of a conversation ask, such as {input}")
    messages: str | None = Field(None, description="a column that holds a conversation as JSON messages")
    system: str | None = Field(None, description="the text of a system message")
    answer_prefix: str = Field("", description="text with which the answer begins")
    strip: bool = Field(False, description="true or false: whether blanks around the columns' values are left out")
    asks_first: bool = Field(
        False, description="true or false: whether what stands before {context} tells the question"
    )

    @model_validator(mode="after")
    def _one_kind(self):
        if (self.text is None) == (self.messages is None):
            raise ValueError("wanted text, or messages")
        if self.text is not None and self.text.count("{context}") > 1:
            raise ValueError("wanted {context} once in text: before it stands what does not depend on the question")
        head, found, _ = (self.text or "").partition("{context}")
        if found and "{input}" in head and not self.asks_first:
            raise ValueError("wanted {input} after {context}, or asks_first: true, which refuses query_aware=false")
        if self.next is not None and (self.messages or self.system or self.answer_prefix or "{context}" in self.next):
            raise ValueError("wanted next without {context}, and no messages, system or answer_prefix beside it")
        return self


class Cut(Part):
    """What a prompt that is too long loses: the whole prompt's middle, or its context's end or start."""

    at: Literal["middle", "end", "start"] = Field(description="middle, end or start")
    tokens: int | None = Field(None, ge=2, description="a whole number: tokens of the prompt without its frame")


class Generate(Part):
    """How an answer is made: the most likely tokens, up to so many, up to a text that ends it."""

    max_new_tokens: int = Field(64, ge=1, description="a whole number, 1 or more")
    stop: Texts = Field([], description="texts that end an answer")


class Description(Part):
    """One data set."""

    name: str = Field(description="letters, digits, _ . and -")
    license: str | None = Field(None, description="text")
    size: str | None = Field(None, description="text: how many samples the source is known to have")
    source: Source = Field(description="a mapping with hub, local or generator")
    rows: Rows = Field(Rows(), description="a mapping")
    columns: dict[str, str] = Field(description="a mapping of context, input, answers, id, needle to columns")
    choices: Choices | None = Field(None, description="a mapping with columns and gold")
    prompt: Prompt = Field(description="a mapping with text")
    chat: bool = Field(True, description="true or false")
    cut: Cut | None = Field(None, description="a mapping with at and tokens, or null")
    generate: Generate = Field(Generate(), description="a mapping with max_new_tokens and stop")
    metric: Any = Field(description="the name of a metric, a mapping of a name to options, or a list of these")
    buckets: Texts = Field([], description="columns whose values are reported apart")
    strata: str | None = Field(None, description="a column whose values are data sets of their own")
    group: str = Field("", description="text: sets of one group are reported together")
    group_by: str = Field("context", description="a column: samples of one value count as one in intervals")
    headline: Literal["items", "strata", "none"] | None = Field(None, description="items, strata or none")

    @model_validator(mode="after")
    def _turns(self):
        if (self.rows.turns is None) != (self.prompt.next is None):
            raise ValueError("wanted rows.turns and prompt.next together: where turns are, and what later ones ask")
        if self.rows.turns is not None and (self.rows.explode or self.source.generator is not None):
            raise ValueError("wanted rows.turns without rows.explode, and rows of a file or of the hub")
        return self

    @property
    def variants(self) -> list[tuple[str, dict]]:
        """The metrics with their options; the first is the score."""
        listed = self.metric if isinstance(self.metric, list) else [self.metric]
        found = [one if isinstance(one, Mapping) else {one: {}} for one in listed]
        return [(name, dict(options or {})) for one in found for name, options in one.items()]

    @property
    def metrics(self) -> list[str]:
        """The names of the metrics."""
        return list(dict.fromkeys(name for name, _ in self.variants))

    @property
    def parts(self) -> tuple[str, str]:
        """The prompt before and after the context; without one all of it is the question."""
        head, found, tail = (self.prompt.text or "").partition("{context}")
        return (head, tail) if found else ("", head)

    @property
    def has_context(self) -> bool:
        """Whether something can be compressed before the question is seen."""
        return self.prompt.messages is not None or "{context}" in self.prompt.text

    @property
    def read(self) -> list[str]:
        """The names of columns that the prompt asks for, beside those of choices."""
        texts = (self.prompt.text or "", self.prompt.next or "", self.prompt.system or "", self.prompt.answer_prefix)
        return list(dict.fromkeys(found[2] for text in texts for found in PLACE.finditer(text) if found[2]))
