"""Your own data: a file with one JSON object per line, in UTF-8.

    {"context": "...", "question": "...", "answers": ["..."], "metric": "contains", "id": "a", "cluster": "doc1"}

`metric`, `id` and `cluster` are optional; `needle` names a passage of the context (where it occurs first) whose
survival is recorded. Lines that ask about one context give it the same `context_id`: its text stands in the first of
them, and the others leave it empty or repeat it. Nothing else may stand in a line, and null nowhere: a key that does
not apply is left out.
Surrounding white space of context, question, answers and needle is no part of them.
"""

import hashlib
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from pvcbench.errors import UserError
from pvcbench.places import user_path
from pvcbench.tasks import files
from pvcbench.tasks.base import Sample, Task, choice, whole, words
from pvcbench.tasks.metrics import any_found, exact, fold, share_found, token_f1
from pvcbench.tasks.metrics import words as words_of

METRICS = {"contains": any_found, "contains_all": share_found, "exact": exact, "f1": token_f1}
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


def _stripped(value: object) -> str:
    return files.text(value).strip()


def _some(value: object) -> str:
    """Text or a number as the file writes it, not empty."""
    found = _stripped(str(value) if isinstance(value, files.Number) else value)
    if not found:
        raise PydanticCustomError("wanted", "not empty")
    return found


def _passage(value: object) -> str:
    found = _stripped(value)
    if not found:
        raise PydanticCustomError("wanted", "not empty")
    return found


def _answers(value: object) -> list[str]:
    """The answers in order, each once: of a single one, a list, or SQuAD's object of texts and their places."""
    if isinstance(value, dict):
        value = value["text"] if set(value) == {"text", "answer_start"} else None
    found = value if isinstance(value, list) else [value]
    if not found:
        raise PydanticCustomError("wanted", "an answer")
    return list(dict.fromkeys(_some(one) for one in found))


class Line(BaseModel):
    """What one line may hold; descriptions say what is wanted."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    context: Annotated[str, BeforeValidator(_stripped)] = Field(description="text")
    question: Annotated[str, BeforeValidator(_stripped)] = Field(description="text")
    answers: Annotated[list[str], BeforeValidator(_answers)] = Field(
        description='texts or numbers that are not empty, such as ["Paris"], or {"text": [...], "answer_start": [...]}'
    )
    metric: Literal["contains", "contains_all", "exact", "f1"] = Field("contains", description=", ".join(METRICS))
    id: Annotated[str, BeforeValidator(_some)] = Field("", description="text or a number; or leave the key out")
    cluster: Annotated[str, BeforeValidator(_some)] = Field("", description="text or a number; or leave the key out")
    needle: Annotated[str, BeforeValidator(_passage)] = Field(
        "", description="a passage of the context; or leave the key out"
    )
    context_id: Annotated[str, BeforeValidator(_some)] = Field("", description="text or a number; or leave the key out")


class Jsonl(Task):
    """Samples in the order of the file; each is scored by its line's metric or the task's.

    In `stop`, a backslash with n, t or r is a newline, tab or carriage return, and two backslashes are one.
    """

    name, version, primary, shorten = "jsonl", 2, "score", "shorten its context"

    def __init__(
        self,
        path: str,
        metric: str = "contains",
        max_new_tokens: int = 64,
        stop: Sequence[str] | str = (),
        name: str = "jsonl",
    ):
        if not path:
            raise UserError("which file? set task.path=FILE, one JSON object per line: context, question, answers")
        self.path, self.max_new_tokens = user_path(path), whole("task.max_new_tokens", max_new_tokens)
        self.stop = tuple(unescaped(one) for one in words("task.stop", stop))
        self.metric = choice("task.metric", metric, tuple(METRICS))

    @cached_property
    def _content(self) -> bytes:
        """The file, which scoring stored rows again does not need."""
        if not self.path.is_file():
            raise UserError(f"task.path: there is no file {self.path}")
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise UserError(f"task.path: {self.path} cannot be read: {error.strerror}") from error

    @cached_property
    def _lines(self) -> list[Line]:
        """All lines, checked; each with its id and metric."""
        made, wrong, numbers, contexts = [], [], {}, {}
        for number, text in files.lines(self._content, str(self.path)):
            line, found = self._line(number, text, contexts)
            wrong += [f"line {number}: {one}" for one in found]
            if line is not None:
                if numbers.setdefault(line.id, number) != number:
                    told = f"{files.shown(line.id)} is the id of line {numbers[line.id]} too"
                    wrong.append(f"line {number}: id: {told}; wanted an id of its own (without one it is the number)")
                made.append(line)
        files.refuse(str(self.path), wrong)
        if not made:
            raise UserError(f"{self.path} holds no samples")
        return made

    def _line(self, number: int, text: str, contexts: dict[str, str]) -> tuple[Line | None, list[str]]:
        """One line, or what is wrong with it; `contexts` are those that earlier lines named."""
        try:
            found = files.item(text)
        except files.Refused as error:
            return None, [str(error)]
        wrong = files.problems(Line, found)
        if wrong:
            return None, wrong
        line = Line.model_validate(found)
        line = line.model_copy(update={"id": line.id or str(number), "metric": found.get("metric", self.metric)})
        if line.context_id:
            context = contexts.setdefault(line.context_id, line.context)
            if line.context not in ("", context):
                told = f"another text than the first line with context_id {files.shown(line.context_id)} has"
                return None, [f"context: found {told}; wanted that text, or none"]
            line = line.model_copy(update={"context": context})
        if not line.context and not line.question:
            wrong.append("context: found nothing in it nor in question, wanted a text to ask about")
        if line.needle and line.needle not in line.context:
            wrong.append(f"needle: found {files.shown(line.needle)}, wanted a passage that occurs in the context")
        unseen = [answer for answer in line.answers if not fold(answer)]
        wrong += [f"answers: found {one!a}, wanted characters that can be seen" for one in unseen]
        if line.metric == "f1" and not unseen:
            empty = [answer for answer in line.answers if not words_of(answer)]
            wrong += [f"answers: found {files.shown(one)}, wanted words, which metric f1 compares" for one in empty]
        return line, wrong

    def validate(self) -> None:
        """Reads and checks the whole file."""
        self.size(0)

    def size(self, seed: int) -> int:
        return len(self._lines)

    def data_checksum(self) -> str:
        return hashlib.sha256(self._content).hexdigest()

    def sample(self, seed: int, index: int) -> Sample:
        line = self._lines[index]
        start = line.context.find(line.needle)
        return Sample(
            id=line.id,
            cluster=line.cluster,
            context_id=line.context_id,
            context=line.context,
            question=line.question,
            answers=tuple(line.answers),
            max_new_tokens=self.max_new_tokens,
            stop=self.stop,
            spans={"needle": (start, start + len(line.needle))} if line.needle else {},
            metric=line.metric,
        )

    def score(self, sample: Sample, output: str) -> dict[str, float]:
        return {sample.metric: METRICS[sample.metric](sample.answers, output)}


def unescaped(text: str) -> str:
    """A backslash with n, t or r as the character it stands for, as Hydra leaves them alone; two backslashes as one."""
    return re.sub(r"\\([ntr\\])", lambda found: ESCAPES[found[1]], text)
