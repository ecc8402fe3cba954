"""From a sample to the tokens a model reads: chat template, token spans and the end of the context."""

import hashlib
import unicodedata
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import regex

from pvcbench.errors import UserError
from pvcbench.tasks.base import Sample
from pvcbench.tasks.chat import DATE, Chat
from pvcbench.tasks.conversation import Exchange, Joint, first_of, later


@dataclass(frozen=True)
class Prompt:
    """The token ids of a sample, where its context ends, and its spans as token ranges."""

    ids: Sequence[int]
    context_tokens: int
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)
    ends: tuple[int, ...] = ()  # tokens that end this answer beside the model's own; no answer starts with any of them
    frame_tokens: int = 0  # before the context: the template's head, a BOS token
    first_tokens: int = 0  # of a conversation: those of its first turn's prompt; 0: a question by itself
    exchanges: tuple[Exchange, ...] = ()  # what the later turns up to this one add to them, golden answers included
    golden_sha256: str = ""  # of the same turn after golden answers, where those here are the model's own

    @property
    def told_tokens(self) -> int:
        """Tokens before what this turn asks: the context's, or everything up to the end of the answer before."""
        return len(self.ids) - len(self.exchanges[-1].asked) if self.exchanges else self.context_tokens

    @property
    def sha256(self) -> str:
        """A hash of the token ids: equal hashes prove that two cells saw the same prompt.

        After the model's own answers it is that after golden ones, so that rows of one turn can be paired.
        """
        return self.golden_sha256 or _hash(self.ids)

    def start_sha256(self, tokens: int) -> str:
        """The same of its first tokens, such as those that several questions share."""
        return _hash(self.ids[:tokens])

    def having(self, answers: Sequence[Sequence[int]]) -> "Prompt":
        """The same turn after other answers of the turns before it; the spans stay, since they lie before these."""
        pairs = zip(self.exchanges, answers, strict=True)
        exchanges = tuple(replace(one, answer=tuple(answer)) for one, answer in pairs)
        ids = joined(self.ids[: self.first_tokens], exchanges)
        return replace(self, exchanges=exchanges, ids=ids, golden_sha256=self.sha256)

    def at(self, turn: int) -> "Prompt":
        """An earlier turn of the same conversation, counted from 1."""
        exchanges = self.exchanges[: turn - 1]
        return replace(self, exchanges=exchanges, ids=joined(self.ids[: self.first_tokens], exchanges))


def joined(first: Sequence[int], exchanges: Sequence[Exchange]) -> array:
    """The tokens of a first turn's prompt and of what later turns add to it."""
    return array("i", [*first, *(token for one in exchanges for part in (one.answer, one.asked) for token in part)])


def _hash(ids: Sequence[int]) -> str:
    return hashlib.sha256(np.asarray(ids, dtype=np.int64).tobytes()).hexdigest()


class Prompter:
    """Writes prompts for one tokenizer: context, blank line, question, in the chat template if there is one.

    `longest` is the longest sequence of the model in tokens, None where it names none. `thinking` and `date` are the
    model's settings; the attribute `thinking` says what became of thoughts (see `tasks.chat`), None without a chat.
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
        """Token ids, the number of tokens that hold the context (template head included), and token spans.

        Of a later turn of a conversation the ids are those of all turns up to this one.
        """
        if sample.turns:
            return self.continued(self.encode(first_of(sample)), self.following(sample, self.chat, self.after))
        start = len(self.before)
        spans = {name: (start + first, start + last) for name, (first, last) in sample.spans.items()}
        return self.tokens(self.text(sample), start + len(sample.context), spans, not self.chat, start)

    def tokens(
        self,
        text: str,
        context_end: int,
        spans: Mapping[str, tuple[int, int]] | None = None,
        special: bool = True,
        context_start: int = 0,
    ) -> Prompt:
        """A whole prompt given as text, its context's ends and its spans in characters; `special` adds a BOS token.

        A span whose tokens do not cover it, or do not say it when they are decoded, is refused.
        """
        coded = self.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
        offsets = np.asarray(coded["offset_mapping"])
        before, context = (int((offsets[:, 1] <= place).cumprod().sum()) for place in (context_start, context_end))
        ranges = {}
        for name, (first, last) in (spans or {}).items():
            inside = np.flatnonzero((offsets[:, 1] > first) & (offsets[:, 0] < last))
            ranges[name] = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0)
            self._check_span(name, text, (first, last), coded["input_ids"][slice(*ranges[name])])
        return Prompt(array("i", coded["input_ids"]), context, ranges, frame_tokens=before)

    @cached_property
    def joint(self) -> Joint:
        """What the chat template writes between an answer and the next one; refuses templates that rewrite turns."""
        return Joint.of(self.template)

    def following(self, sample: Sample, chat: bool, after: str) -> list[Exchange]:
        """What a conversation's turns add to its first, up to this one; `after` follows a question without a chat."""
        joint = self.joint if chat else Joint("\n\n", after)
        return later(sample, joint, self.tokenizer, self.template if chat else None)

    def continued(self, first: Prompt, exchanges: Sequence[Exchange]) -> Prompt:
        """The prompt of a turn behind that of its conversation's first."""
        ids = joined(first.ids, exchanges)
        return replace(first, ids=ids, first_tokens=len(first.ids), exchanges=tuple(exchanges))

    def _check_span(self, name: str, text: str, span: tuple[int, int], ids: Sequence[int]) -> None:
        """Refuses a span that is no part of the text, or is not in what its tokens decode to."""
        if not 0 <= span[0] < span[1] <= len(text):
            raise UserError(f"the passage {name!r} is no part of its prompt: characters {span} of {len(text)}")
        wanted, said = text[slice(*span)], self.tokenizer.decode(ids, skip_special_tokens=False)
        if wanted not in said and _bare(wanted) not in _bare(said):
            raise UserError(
                f"the tokenizer cannot write the passage {name!r}: {wanted[:60]!r} becomes {said[:60]!r}; "
                "whether it survives cannot be told, so leave it out or reword it"
            )

    def bare(self, text: str) -> list[int]:
        """The tokens of a text alone, without special ones."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(self, tokens: list[int]) -> str:
        """The text of generated tokens."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True)


def _bare(text: str) -> str:
    """A text without what tokenizers may change: forms of characters, accents, letter case and white space."""
    return regex.sub(r"[\s\p{M}]+", "", unicodedata.normalize("NFKD", text).casefold())
