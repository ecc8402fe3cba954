"""RULER (arXiv:2404.06654): needles, variable tracking, common and frequent words, questions about documents.

    python -m pvcbench task=ruler 'task.lengths=[4096]' 'task.sets=[niah_single_1, vt]' method=h2o

Six sets need no data and come from lm-eval's generators; seven read essays or questions of a package (see `data`). The
form says whose way of joining, measuring and scoring is followed (see `forms`).
"""

import importlib.metadata
import importlib.util
import os
from collections.abc import Sequence

from pvcbench.config.extras import pip_install
from pvcbench.errors import UserError
from pvcbench.places import user_path
from pvcbench.tasks.base import Sample, Task, choice, flag, listed, whole, wholes
from pvcbench.tasks.prompts import Prompt, Prompter
from pvcbench.tasks.ruler import data
from pvcbench.tasks.ruler.forms import FORMS
from pvcbench.tasks.ruler.lm_eval_sets import written
from pvcbench.tasks.ruler.request import Made, Request, TooFew
from pvcbench.tasks.ruler.sets import DEFAULT, READERS, SETS


class Ruler(Task):
    """Samples cycle through the sets, then the lengths; `samples` per set and length."""

    name, version, primary = "ruler", 1, "string_match_all"
    counted = ("samples",)

    def __init__(
        self,
        lengths: Sequence[int] = (4096,),
        sets: Sequence[str] = DEFAULT,
        samples: int = 50,
        chat: bool | None = None,
        form: str = "lm_eval",
        data_dir: str | os.PathLike | None = None,
    ):
        if any(importlib.util.find_spec(package) is None for package in ("lm_eval", "nltk", "wonderwords")):
            raise UserError(f"task=ruler needs lm-eval, nltk and wonderwords: {pip_install('eval')}")
        self.lengths, self.samples = wholes("task.lengths", lengths), whole("task.samples", samples)
        if min(self.lengths) < 256:  # no set fits into less, and FWE's vocabulary is a fiftieth of the length
            raise UserError(f"task.lengths: {min(self.lengths)} tokens are too few for RULER: 256 or more")
        self.sets = [choice("task.sets", name, tuple(SETS)) for name in listed("task.sets", sets)]
        self.chat = None if chat is None else flag("task.chat", chat)
        self.form = choice("task.form", form, tuple(FORMS))
        if FORMS[self.form].metric is not None:
            self.primary = FORMS[self.form].metric
        self._folder, self._memory = None if data_dir is None else user_path(data_dir), {}
        if self._folder is not None and not self._folder.is_dir():
            raise UserError(f"task.data_dir: there is no folder {self._folder}")

    def settings(self) -> dict:
        """The form where it is not lm-eval's; the checksum says what was read."""
        return {key: value for key, value in super().settings().items() if (key, value) != ("form", "lm_eval")}

    def validate(self) -> None:
        """Reads the essays and questions that the sets need."""
        for name in self._files():
            READERS[name](self._folder)

    def _files(self) -> list[str]:
        return [name for name in dict.fromkeys(SETS[one].file for one in self.sets) if name is not None]

    def prepare(self, prompter: Prompter) -> None:
        if prompter.longest is not None and max(self.lengths) > prompter.longest:
            raise UserError(f"task.lengths: {max(self.lengths)} tokens are more than the model's {prompter.longest}")
        if self.chat and getattr(prompter.tokenizer, "chat_template", None) is None:
            raise UserError("task.chat: this tokenizer has no chat template; set task.chat=false")
        self.prompter = prompter if self.chat is None else prompter.with_chat(self.chat)
        self._memory = {}

    def size(self, seed: int) -> int:
        return len(self.sets) * len(self.lengths) * self.samples

    def data_checksum(self) -> str:
        packages = (f"{name} {importlib.metadata.version(name)}" for name in ("lm-eval", "wonderwords", "nltk"))
        return ", ".join([*packages, *(f"{name} {data.checksum(name, self._folder)}" for name in self._files())])

    @property
    def agnostic(self) -> str:
        """The aware form puts the question into the context itself, and leaves what follows it uncompressed."""
        return f"task.form={self.form} moves the question into the context" if FORMS[self.form].aware else ""

    def protocol_record(self) -> dict:
        return {"name": "question compressed"} if FORMS[self.form].aware else {}

    def sample(self, seed: int, index: int) -> Sample:
        rest, place = divmod(index, len(self.sets))
        name, (repeat, place) = self.sets[place], divmod(rest, len(self.lengths))
        length = self.lengths[place]
        try:
            made = self._written(name, length, seed, index, repeat)
        except (TooFew, ValueError) as error:
            raise UserError(f"task.lengths: {length} tokens are too few for {name}") from error
        return self._sample(name, length, f"{seed}-{index}", made)

    def _written(self, name: str, length: int, seed: int, index: int, repeat: int) -> Made:
        """What the set's generator makes, within the length."""
        kind, extra, example = SETS[name], 0, FORMS[self.form].example

        def over(made: Made) -> int:
            return self._tokens(name, made) + kind.tokens - length

        while True:  # ends: a generator that must leave more and more free raises TooFew or ValueError
            more = {"folder": self._folder, "memory": self._memory, "example": example}
            request = Request(self.prompter.tokenizer, length, extra, seed, repeat, name, over, **more)
            if kind.file is not None:
                return kind.make(request)
            made = written(request, kind.make, index, kind.question, kind.span, name)
            if over(made) <= 0:
                return made
            extra += over(made)

    def _tokens(self, name: str, made: Made) -> int:
        """How many tokens of the length a prompt takes."""
        form, prompter = FORMS[self.form], self.prompter
        if not form.counts_frame:
            return len(prompter.bare(form.bare(made, SETS[name])))
        context, question = form.parts(made, SETS[name], prompter)
        text = f"{prompter.before}{context}{question}"
        return len(prompter.tokenizer(text, add_special_tokens=not prompter.chat)["input_ids"])

    def _sample(self, name: str, length: int, label: str, made: Made) -> Sample:
        context, question = FORMS[self.form].parts(made, SETS[name], self.prompter)
        info = {"set": name, "length": length, "bucket": f"{length} tokens"}
        label, spans = f"{name}/{length}/{label}", dict(made.spans)
        more = {"cluster": made.cluster, "stratum": name, "spans": spans, "info": info}
        return Sample(label, context, question, made.answers, SETS[name].tokens, **more)

    def encode(self, sample: Sample) -> Prompt:
        head, start = self.prompter.before, len(self.prompter.before)
        spans = {name: (start + first, start + last) for name, (first, last) in sample.spans.items()}
        text, end = f"{head}{sample.context}{sample.question}", start + len(sample.context)
        return self.prompter.tokens(text, end, spans, special=not self.prompter.chat)

    def score(self, sample: Sample, output: str) -> dict[str, float]:
        return FORMS[self.form].score(SETS[sample.stratum], sample.answers, output)
