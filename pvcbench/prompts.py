"""From a sample to the tokens a model reads: chat template, token spans and the end of the context."""

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from pvcbench.chat import DATE, Chat
from pvcbench.errors import UserError
from pvcbench.tasks.base import Sample


@dataclass(frozen=True)
class Prompt:
    """The token ids of a sample, where its context ends, and its spans as token ranges."""

    ids: Sequence[int]
    context_tokens: int
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)
    ends: tuple[int, ...] = ()  # tokens that end this answer beside the model's own; no answer starts with any of them

    @property
    def sha256(self) -> str:
        """A hash of the token ids: equal hashes prove that two cells saw the same prompt."""
        return hashlib.sha256(np.asarray(self.ids, dtype=np.int64).tobytes()).hexdigest()


class Prompter:
    """Writes prompts for one tokenizer: context, blank line, question, in the chat template if there is one.

    `longest` is the longest sequence of the model in tokens, None where it names none. `thinking` and `date` are the
    model's settings; the attribute `thinking` says what became of thoughts (see `pvcbench.chat`), None without a chat.
    """

    def __init__(
        self,
        tokenizer,
        chat: bool | None = None,
        longest: int | None = None,
        thinking: bool = False,
        date: str = DATE,
    ):
        has_template = getattr(tokenizer, "chat_template", None) is not None
        if chat and not has_template:
            raise UserError("this tokenizer has no chat template: set model.chat=false")
        self.tokenizer, self.longest = tokenizer, longest
        self.chat = has_template if chat is None else chat
        self._settings = (thinking, date)
        self.thinking = self.template.thinking if self.chat else None
        self.before, self.after = self.template.frame() if self.chat else ("", "\n")

    @cached_property
    def template(self) -> Chat:
        """The tokenizer's chat template."""
        return Chat(self.tokenizer, *self._settings)

    def with_chat(self, chat: bool | None) -> "Prompter":
        """The same prompter with or without the chat template."""
        return Prompter(self.tokenizer, chat, self.longest, *self._settings)

    def text(self, sample: Sample) -> str:
        """The whole prompt as text."""
        return f"{self.before}{sample.context}\n\n{sample.question}{self.after}"

    def encode(self, sample: Sample) -> Prompt:
        """Token ids, the number of tokens that hold the context (template head included), and token spans."""
        start = len(self.before)
        spans = {name: (start + first, start + last) for name, (first, last) in sample.spans.items()}
        return self.tokens(self.text(sample), start + len(sample.context), spans, special=not self.chat)

    def tokens(
        self, text: str, context_end: int, spans: Mapping[str, tuple[int, int]] | None = None, special: bool = True
    ) -> Prompt:
        """A whole prompt given as text, its context's end and its spans in characters; `special` adds a BOS token."""
        coded = self.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
        offsets = np.asarray(coded["offset_mapping"])
        context = int((offsets[:, 1] <= context_end).cumprod().sum())
        ranges = {}
        for name, (first, last) in (spans or {}).items():
            inside = (offsets[:, 1] > first) & (offsets[:, 0] < last)
            ranges[name] = (int(inside.argmax()), int(inside.argmax() + inside.sum()))
        return Prompt(array("i", coded["input_ids"]), context, ranges)

    def decode(self, tokens: list[int]) -> str:
        """The text of generated tokens."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True)
