"""Needle in a haystack: facts hidden in long text at exact depths, asked for at the end.

The default value is a common word, because a number is written digit by digit by many tokenizers and asks for one
digit at a time; `value=number` and `value=uuid` are the harder variants, `needle=sandwich` the classic one.
"""

import uuid
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pvcbench.errors import UserError
from pvcbench.places import user_path
from pvcbench.tasks.base import Sample, Task, Turn, choice, flag, listed, number, sample_rng, whole, wholes
from pvcbench.tasks.metrics import rouge1_recall, share_found, token_overlap
from pvcbench.tasks.needle import haystack
from pvcbench.tasks.needle.words import KEYS, WORDS

SANDWICH = "The best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny day."
SANDWICH_QUESTION = "What is the best thing to do in San Francisco?"
SANDWICH_ANSWER = "eat a sandwich and sit in Dolores Park on a sunny day"
UNITS = {"word": "magic word", "number": "magic number", "uuid": "magic uuid"}


class Needle(Task):
    """Samples cycle through the depths, then the lengths; each has its own haystack order and its own values.

    A needle's real depth, the share of the haystack's tokens before it in the final prompt, is at most `tolerance`
    percentage points off the depth asked for; a sample for which no such place is found is refused.
    """

    name, version, counted = "needle", 2, ("repeats",)

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
        tolerance: float = 2.0,
        questions: int = 1,
        turns: bool = False,
    ):
        self.lengths, self.repeats = wholes("task.lengths", lengths), whole("task.repeats", repeats)
        self.depths = [number("task.depths", depth, 0, 100) for depth in listed("task.depths", depths)]
        self.needle = choice("task.needle", needle, ("magic", "sandwich"))
        self.value = choice("task.value", value, tuple(UNITS))
        if whole("task.needles", needles) > len(KEYS) or not 1 <= whole("task.asked", asked) <= needles:
            raise UserError(f"task.needles must be 1 to {len(KEYS)} and task.asked 1 to task.needles")
        if whole("task.questions", questions) * asked > needles:
            raise UserError("task.questions times task.asked must be task.needles or less: each asks for its own")
        self.needles, self.asked, self.questions, self.source = needles, asked, questions, haystack
        self.turns = flag("task.turns", turns)
        if self.turns and questions == 1:
            raise UserError("task.turns=true makes turns of a conversation of task.questions: set it to 2 or more")
        self.max_new_tokens = whole("task.max_new_tokens", max_new_tokens)
        self.snap_tokens = whole("task.snap_tokens", snap_tokens, 0)
        self.tolerance = number("task.tolerance", tolerance, 0, 100)

    def size(self, seed: int) -> int:
        return len(self.lengths) * len(self.depths) * self.repeats * self.questions

    def validate(self) -> None:
        """Reads the haystack."""
        self.data_checksum()

    def settings(self) -> dict:
        """The haystack by its name alone, since the checksum says what it holds; questions where there are several."""
        known = super().settings() | {"source": user_path(self.source).name}
        return {key: value for key, value in known.items() if (key, value) not in (("questions", 1), ("turns", False))}

    @property
    def has_turns(self) -> bool:
        """Whether the questions on one text are turns of a conversation."""
        return self.turns

    def data_checksum(self) -> str:
        return "" if self.source == "distractors" else haystack.checksum(self.source)

    def sample(self, seed: int, index: int) -> Sample:
        index, which = divmod(index, self.questions)
        cell = index % (len(self.depths) * len(self.lengths))
        depth, length = self.depths[cell % len(self.depths)], self.lengths[cell // len(self.depths)]
        text, offsets, rng = self._text(length, seed, index)
        needles, asked = self._needles(text, rng)
        # the longest question decides how much text fits
        question, answers = max(asked, key=lambda pair: len(self.prompter.tokenizer(pair[0])["input_ids"]))
        sample = Sample(f"{seed}-{index}", "", question, answers, self.max_new_tokens)
        for near in (self.tolerance, self.tolerance / 2):  # where the final prompt's tokens differ from the text's
            made, off = self._written(sample, text, offsets, length, depth, needles, near)
            if off <= self.tolerance:
                return made if self.questions == 1 else self._asked_as(made, which, asked)
        raise UserError(
            f"task.haystack: {self.source!r} has no place for the needle of sample {sample.id} at {depth:g}% of "
            f"{length} tokens: the nearest is {off:.1f} points off; raise task.lengths or task.tolerance"
        )

    def _asked_as(self, made, which, questions):
        """A sample with another question on its context: the needle that it asks for is called `needle`."""
        question, answers = questions[which]
        first, names = which * self.asked, [_name(number) for number in range(len(made.spans))]
        spans = {name: made.spans[names[(first + place) % len(names)]] for place, name in enumerate(names)}
        asked, real = self._asked_depths(made.info["depth"])[first], _depths(self.prompter.encode(made))[first]
        info = {**made.info, "depth": round(asked, 2), "real_depth": round(real, 2)}
        known = {"id": f"{made.id}-{which}", "context_id": made.id, "spans": spans, "info": info}
        if self.turns:
            known |= {"turns": tuple(Turn(one, " ".join(found)) for one, found in questions), "turn": which + 1}
        return replace(made, question=question, answers=answers, **known)

    def _text(self, length, seed, index):
        """A haystack of at least so many tokens if there is one, where its tokens lie, and the sample's generator."""
        for characters in (8, 64, 512):  # a token's
            rng = sample_rng(seed, index)
            if self.source == "distractors":
                text = self._distractors(length, rng)
            else:
                text = haystack.shuffled(self.source, characters * length, rng)
            coded = self.prompter.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            offsets = np.asarray(coded["offset_mapping"])
            if len(offsets) >= length or self.source == "distractors":
                break
        return text, offsets, rng

    def _written(self, sample, text, offsets, length, depth, needles, near):
        """The sample with as much text as fits into the length, and how many points its needles are off at most."""
        best, tried, wanted = (0, None, None), set(), min(length, len(offsets))
        while wanted > 0 and wanted not in tried and len(tried) < 12 and best[0] < length:
            tried.add(wanted)
            context, spans = self._hide(text, offsets, wanted, depth, needles, near)
            made = replace(sample, context=context, spans=spans)
            prompt = self.prompter.encode(made)
            if best[0] < len(prompt.ids) <= length:
                best = len(prompt.ids), made, prompt
            wanted = min(wanted + length - len(prompt.ids), len(offsets))
        if best[1] is None or best[0] < 0.99 * length:
            raise UserError(
                f"no needle prompt of {length} tokens can be made: task.lengths must leave room for the question"
            )
        real = _depths(best[2])
        off = max(abs(found - asked) for found, asked in zip(real, self._asked_depths(depth), strict=True))
        info = {"length": length, "depth": depth, "real_depth": round(real[0], 2), "value": self.value}
        return replace(best[1], info=info), off

    def _asked_depths(self, depth):
        """Where each needle is asked for: the first at the depth, the others spread evenly over the text from there."""
        count = 1 if self.needle == "sandwich" else self.needles
        return [depth, *((depth + 100 * which / count) % 100 for which in range(1, count))]

    def _needles(self, text, rng):
        """The sentences to hide, and the questions, each with its answers."""
        if self.needle == "sandwich":
            return [SANDWICH], [(SANDWICH_QUESTION, (SANDWICH_ANSWER,))]
        unit = UNITS[self.value]
        values: list[str] = []
        while len(values) < self.needles:  # no value twice: each key asks for one of its own
            value = self._value(text, rng)
            values += [value] if value not in values else []
        if self.needles == 1:
            sentence = f'The special {unit} mentioned in the text is "{values[0]}."'
            return [sentence], [(f"What is the special {unit} mentioned in the text?", (values[0],))]
        keys = [KEYS[i] for i in rng.choice(len(KEYS), self.needles, replace=False)]
        sentences = [f"The special {unit} for {key} is: {value}." for key, value in zip(keys, values, strict=True)]
        questions = []
        for first in range(0, self.questions * self.asked, self.asked):
            *own, last = keys[first : first + self.asked]
            asked = f"{', '.join(own)} and {last}" if own else last
            verb, plural = ("are", "s") if own else ("is", "")
            answers = tuple(values[first : first + self.asked])
            questions.append((f"What {verb} the special {unit}{plural} for {asked}?", answers))
        return sentences, questions

    def _value(self, text, rng):
        """A value that the haystack does not hold."""
        known = text.lower()
        if self.value == "word" and sum(word not in known for word in WORDS) < self.needles:
            raise UserError(
                f"task.haystack: {self.source!r} holds nearly every word that could be hidden in it: "
                "set task.value=number or task.value=uuid, or lower task.lengths"
            )
        while True:
            if self.value == "number":
                value = str(rng.integers(1_000_000, 10_000_000))
            elif self.value == "uuid":
                value = str(uuid.UUID(bytes=rng.bytes(16), version=4))
            else:
                value = WORDS[rng.integers(len(WORDS))]
            if value not in known:
                return value

    def _distractors(self, length, rng):
        """A haystack in which every line looks like a needle (RULER's multikey_3)."""
        names = [f"{KEYS[a]}-{KEYS[b]}" for a, b in rng.integers(len(KEYS), size=(length // 8, 2))]
        unit = UNITS[self.value]
        return "\n".join(f"The special {unit} for {name} is: {self._value('', rng)}." for name in names)

    def _hide(self, text, offsets, wanted, depth, needles, near):
        """The first `wanted` tokens of the text with the needles in it, and the needles' spans; `near` in points."""
        cut = len(text) if wanted >= len(offsets) else haystack.character_start(text, int(offsets[wanted][0]))
        whole = haystack.word_start(text, cut)
        if wanted - np.searchsorted(offsets[:, 0], whole) <= wanted // 200:  # whole words, unless that costs length
            cut = whole
        starts = offsets[: np.searchsorted(offsets[:, 0], cut), 0]
        within = int(near / 100 * len(starts))
        tokens = [round(share / 100 * len(starts)) for share in self._asked_depths(depth)]
        places = [haystack.place_of(text[:cut], starts, token, self.snap_tokens, within) for token in tokens]
        context, spans, last = "", {}, 0
        for place, which in sorted((place, which) for which, place in enumerate(places)):
            context += text[last:place]
            context += "" if not context or context[-1].isspace() else " "
            spans[_name(which)] = (len(context), len(context) + len(needles[which]))
            context, last = f"{context}{needles[which]} ", place
        return (context + text[last:cut].lstrip()).rstrip(), spans

    def score(self, sample: Sample, output: str) -> dict[str, float]:
        scores = {"accuracy": share_found(sample.answers, output)}
        if self.needle == "sandwich":
            answer = sample.answers[0]
            scores |= {"rouge1_recall": rouge1_recall(answer, output), "token_overlap": token_overlap(answer, output)}
        return scores


def _name(number: int) -> str:
    """What the span of a needle is called."""
    return f"needle_{number}" if number else "needle"


def _depths(prompt) -> list[float]:
    """The real depth of each needle in per cent: of the context's tokens but for the needles', those before it."""
    needles = sorted(prompt.spans.items(), key=lambda named: int(named[0].partition("_")[2] or 0))
    ranges = [span for _, span in needles]
    last = max(prompt.context_tokens, *(stop for _, stop in ranges))  # a needle's last token may hold what follows it
    total = last - prompt.frame_tokens - sum(stop - start for start, stop in ranges)
    found = []
    for start, _ in ranges:
        others = sum(stop - first for first, stop in ranges if first < start)
        found.append(100 * (start - prompt.frame_tokens - others) / max(1, total))
    return found
