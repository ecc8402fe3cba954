"""Needle in a haystack: facts hidden in long text at exact depths, asked for at the end.

The default value is a common word, because a number is written digit by digit by many tokenizers and asks for one
digit at a time; `value=number` and `value=uuid` are the harder variants, `needle=sandwich` the classic one.
"""

import uuid
from collections.abc import Sequence

import numpy as np

from pvcbench.errors import UserError
from pvcbench.tasks import haystack
from pvcbench.tasks.base import Sample, Task, choice, sample_rng
from pvcbench.tasks.metrics import rouge1_recall, share_found, token_overlap
from pvcbench.tasks.words import KEYS, WORDS

SANDWICH = "The best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny day."
SANDWICH_QUESTION = "What is the best thing to do in San Francisco?"
SANDWICH_ANSWER = "eat a sandwich and sit in Dolores Park on a sunny day"
UNITS = {"word": "magic word", "number": "magic number", "uuid": "magic uuid"}


class Needle(Task):
    """Samples cycle through the depths, then the lengths; each has its own haystack order and its own values."""

    name, version = "needle", 1

    def __init__(
        self,
        lengths: Sequence[int] = (1024,),
        depths: Sequence[float] = (0, 25, 50, 75, 100),
        repeats: int = 3,
        needle: str = "magic",
        value: str = "word",
        needles: int = 1,
        asked: int = 1,
        haystack: str = "sotu",
        max_new_tokens: int = 32,
        snap_tokens: int = 100,
    ):
        self.lengths, self.depths, self.repeats = list(lengths), [float(depth) for depth in depths], repeats
        self.needle = choice("task.needle", needle, ("magic", "sandwich"))
        self.value = choice("task.value", value, tuple(UNITS))
        if not 1 <= asked <= needles <= len(KEYS):
            choice("task.asked", str(asked), tuple(str(n) for n in range(1, needles + 1)))
        self.needles, self.asked, self.source = needles, asked, haystack
        self.max_new_tokens, self.snap_tokens = max_new_tokens, snap_tokens

    def size(self, seed: int) -> int:
        return len(self.lengths) * len(self.depths) * self.repeats

    def data_checksum(self) -> str:
        return "" if self.source == "distractors" else haystack.checksum(self.source)

    def sample(self, seed: int, index: int) -> Sample:
        cell = index % (len(self.depths) * len(self.lengths))
        depth, length = self.depths[cell % len(self.depths)], self.lengths[cell // len(self.depths)]
        rng = sample_rng(seed, index)
        if self.source == "distractors":
            text = self._distractors(length, rng)
        else:
            text = haystack.shuffled(self.source, 8 * length, rng)
        needles, question, answers = self._needles(text, rng)
        coded = self.prompter.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        offsets = np.asarray(coded["offset_mapping"])
        best, tried, wanted = (0, None), set(), min(length, len(offsets))
        while wanted > 0 and wanted not in tried and len(tried) < 12 and best[0] < length:
            tried.add(wanted)
            context, spans, real = self._hide(text, offsets, wanted, depth, needles)
            info = {"length": length, "depth": depth, "real_depth": real, "value": self.value}
            sample = Sample(
                id=f"{seed}-{index}",
                context=context,
                question=question,
                answers=answers,
                max_new_tokens=self.max_new_tokens,
                spans=spans,
                info=info,
            )
            tokens = len(self.prompter.encode(sample).ids)
            if best[0] < tokens <= length:
                best = (tokens, sample)
            wanted = min(wanted + length - tokens, len(offsets))
        if best[1] is None or best[0] < 0.99 * length:
            raise UserError(
                f"no needle prompt of {length} tokens can be made: task.lengths must leave room for the question"
            )
        return best[1]

    def _needles(self, text, rng):
        """The sentences to hide, the question and its answers."""
        if self.needle == "sandwich":
            return [SANDWICH], SANDWICH_QUESTION, (SANDWICH_ANSWER,)
        unit = UNITS[self.value]
        values = [self._value(text, rng) for _ in range(self.needles)]
        if self.needles == 1:
            sentence = f'The special {unit} mentioned in the text is "{values[0]}."'
            return [sentence], f"What is the special {unit} mentioned in the text?", (values[0],)
        keys = [KEYS[i] for i in rng.choice(len(KEYS), self.needles, replace=False)]
        sentences = [f"The special {unit} for {key} is: {value}." for key, value in zip(keys, values, strict=True)]
        asked = keys[0] if self.asked == 1 else f"{', '.join(keys[: self.asked - 1])} and {keys[self.asked - 1]}"
        question = f"What {'is' if self.asked == 1 else 'are'} the special {unit}{'s' * (self.asked > 1)} for {asked}?"
        return sentences, question, tuple(values[: self.asked])

    def _value(self, text, rng):
        """A value that the haystack does not hold."""
        while True:
            if self.value == "number":
                value = str(rng.integers(1_000_000, 10_000_000))
            elif self.value == "uuid":
                value = str(uuid.UUID(bytes=rng.bytes(16), version=4))
            else:
                value = WORDS[rng.integers(len(WORDS))]
            if value not in text.lower():
                return value

    def _distractors(self, length, rng):
        """A haystack in which every line looks like a needle (RULER's multikey_3)."""
        names = [f"{KEYS[a]}-{KEYS[b]}" for a, b in rng.integers(len(KEYS), size=(length // 8, 2))]
        unit = UNITS[self.value]
        return "\n".join(f"The special {unit} for {name} is: {self._value('', rng)}." for name in names)

    def _hide(self, text, offsets, wanted, depth, needles):
        """The first `wanted` tokens of the text with the needles in it, their spans and the depths they came to."""
        cut = len(text) if wanted >= len(offsets) else int(offsets[wanted][0])
        whole = haystack.word_start(text, cut)
        if wanted - np.searchsorted(offsets[:, 0], whole) <= wanted // 200:  # whole words, unless that costs length
            cut = whole
        starts = offsets[: np.searchsorted(offsets[:, 0], cut), 0]
        places = []
        for number in range(len(needles)):
            share = depth if number == 0 else (depth + 100 * number / len(needles)) % 100
            token = round(share / 100 * len(starts))
            place = cut if token >= len(starts) else int(starts[token])
            bound = place - int(starts[max(0, min(token, len(starts) - 1) - self.snap_tokens)])
            places.append(haystack.sentence_start(text[:cut], place, bound))
        context, spans, last = "", {}, 0
        for place, number in sorted((place, number) for number, place in enumerate(places)):
            context += text[last:place]
            context += "" if not context or context[-1].isspace() else " "
            spans[f"needle_{number}" if number else "needle"] = (len(context), len(context) + len(needles[number]))
            context, last = f"{context}{needles[number]} ", place
        context = (context + text[last:cut].lstrip()).rstrip()
        return context, spans, round(100 * float(np.searchsorted(starts, places[0])) / max(1, len(starts)), 2)

    def score(self, sample: Sample, output: str) -> dict[str, float]:
        scores = {"accuracy": share_found(sample.answers, output)}
        if self.needle == "sandwich":
            answer = sample.answers[0]
            scores |= {"rouge1_recall": rouge1_recall(answer, output), "token_overlap": token_overlap(answer, output)}
        return scores
