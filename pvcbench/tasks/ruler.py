"""RULER's synthetic tasks (arXiv:2404.06654), written by lm-eval's own generators with the model's tokenizer.

    python -m pvcbench task=ruler 'task.lengths=[4096]' 'task.sets=[niah_single_1, vt]' method=h2o

A length holds the chat frame, the text, the answer's prefix and the tokens to generate; a generator goes up to it in
steps of its own (25 lines from 4096 on), so prompts are up to a step shorter. lm-eval differs from RULER: CWE comes
without its one-shot example, yet leaves room for it; needle sets do not count the answer's prefix and FWE not the
tokens to generate (both counted here); qa scores are the mean over the references, RULER's the best of them.
"""

import contextlib
import importlib.metadata
import importlib.util
import io
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from unittest import mock

import numpy as np

from pvcbench.config.extras import pip_install
from pvcbench.errors import UserError
from pvcbench.tasks.base import Sample, Task, choice, flag, listed, whole, wholes
from pvcbench.tasks.metrics import share_of_substrings
from pvcbench.tasks.prompts import Prompt, Prompter


class TooFew(Exception):
    """The length does not hold a generator's smallest sample."""


@dataclass(frozen=True)
class Request:
    """One sample of one set; `extra` tokens are kept free for what the generator does not know of."""

    tokenizer: object
    length: int
    extra: int
    seed: int
    repeat: int  # the number of the sample within its set and length


class Sizer:
    """Counts tokens for a generator; TooFew if its first text (after an `example`) does not fit: it might never end."""

    def __init__(self, tokenizer, room: float, extra: int = 0, example: bool = False):
        self.tokenizer, self.room, self.extra, self.example, self.fits = tokenizer, room, extra, example, False

    def __call__(self, text: str) -> SimpleNamespace:
        tokens = len(self.tokenizer(text).input_ids) + (0 if self.example else self.extra)
        if not self.fits and tokens >= self.room:
            raise TooFew
        self.room -= tokens if self.example else 0
        self.fits, self.example = not self.example, False
        return SimpleNamespace(input_ids=range(tokens))


def niah(request: Request, type_haystack: str, **settings: object) -> dict:
    """Needles in a haystack; the settings say what keys and values are, and how many."""
    utils, template = module("prepare_niah"), module("niah_utils").TEMPLATE
    text = essays() if type_haystack == "essay" else utils.get_haystack(type_haystack)
    settings |= {"type_haystack": type_haystack, "max_seq_length": request.length, "template": template}
    sizer = Sizer(request.tokenizer, request.length - 128, request.extra)
    return utils.generate_samples(text, sizer, num_samples=1, **settings)[0]


def vt(request: Request) -> dict:
    """Variable tracking; its one-shot example has 500 tokens, twice that where a tokenizer cannot do with so few."""
    make = module("vt_utils").sys_vartrack_w_noise_random
    try:
        example = make(Sizer(request.tokenizer, 500 - 30), 1, 500, incremental=5)[0]
    except TooFew:
        example = make(Sizer(request.tokenizer, 1000 - 30), 1, 1000, incremental=5)[0]
    sizer = Sizer(request.tokenizer, request.length - 30, request.extra, example=True)
    return make(sizer, 1, request.length, icl_example=example)[0]


def cwe(request: Request) -> dict:
    """Common words, whose order comes from a generator of lm-eval's module, seeded here."""
    utils = module("cwe_utils")
    utils.RNG.seed(random.getrandbits(64))
    sizer = Sizer(request.tokenizer, request.length - 120, request.extra)
    return utils.sys_word_pair_random(1, request.length, sizer)[0]


def fwe(request: Request) -> dict:
    """Frequent coded words; the length must hold the template and tell the third word from the fourth."""
    utils, extra = module("fwe_utils"), request.extra + 50
    if len(request.tokenizer(utils.TEMPLATE).input_ids) + extra > request.length:
        raise TooFew  # it would make smaller and smaller texts for ever
    made = utils.sys_kwext(Sizer(request.tokenizer, np.inf, extra), request.length, num_samples=1)[0]
    counts = Counter(word for word in made["input"].split() if re.fullmatch("[a-z]{6}", word))
    rest = [count for word, count in counts.items() if word not in made["outputs"]]
    if min(counts[word] for word in made["outputs"]) <= max(rest, default=0):
        raise TooFew
    return made


def qa(request: Request, reader: str) -> dict:
    """Questions about documents, in an order drawn by seed; `reader` is the function of lm-eval that downloads them."""
    utils = module("qa_utils")
    try:
        questions, documents = getattr(utils, reader)()
    except (OSError, ValueError) as error:
        raise UserError(f"task.sets: qa sets download their questions, which failed ({reader})") from error
    number = np.random.default_rng(request.seed).permutation(len(questions))[request.repeat % len(questions)]
    sizer, settings = Sizer(request.tokenizer, np.inf, request.extra), {"num_samples": 1, "pre_samples": int(number)}
    return utils.generate_samples(sizer, list(documents), questions, request.length, **settings)[0]


@dataclass(frozen=True)
class Set:
    """One of RULER's sets: tokens to generate, where its question starts, and its generator with its settings."""

    tokens: int
    question: str
    make: Callable[..., dict]
    span: str | None = None  # the pattern of a gold sentence, by its answer
    joint: str = " "  # lm-eval's target_delimiter: between question and prefix where there is no chat template


def needles(haystack: str, keys: str, values: str, **counts: int) -> Set:
    """A set of needles: numbers or UUIDs as values of words or UUIDs."""
    made = partial(niah, type_haystack=haystack, type_needle_k=keys, type_needle_v=values, **counts)
    return Set(128, "What ", made, r"One of the special magic \w+ for [^:\n]+ is: {}\.")


DEFAULT = ("niah_single_1", "niah_multikey_2", "niah_multikey_3", "vt", "cwe", "fwe")  # need no corpus
SETS = {
    "niah_single_1": needles("repeat", "words", "numbers"),
    "niah_single_2": needles("essay", "words", "numbers"),
    "niah_single_3": needles("essay", "words", "uuids"),
    "niah_multikey_1": needles("essay", "words", "numbers", num_needle_k=4),
    "niah_multikey_2": needles("needle", "words", "numbers"),
    "niah_multikey_3": needles("needle", "uuids", "uuids"),
    "niah_multivalue": needles("essay", "words", "numbers", num_needle_v=4),
    "niah_multiquery": needles("essay", "words", "numbers", num_needle_q=4),
    "vt": Set(30, "Question: Find all variables", vt, r"VAR {} = (?:VAR )?\w+"),
    "cwe": Set(120, "Question: What are the 10", cwe, joint="\n\n"),
    "fwe": Set(50, "Question: Do not provide", fwe),
    "qa_squad": Set(32, "Answer the question based on", partial(qa, reader="read_squad")),
    "qa_hotpot": Set(32, "Answer the question based on", partial(qa, reader="read_hotpotqa")),
}


class Ruler(Task):
    """Samples cycle through the sets, then the lengths; `samples` per set and length."""

    name, version, primary = "ruler", 1, "string_match_all"

    def __init__(self, lengths: Sequence[int] = (4096,), sets: Sequence[str] = DEFAULT, samples=50, chat=None):
        if any(importlib.util.find_spec(package) is None for package in ("lm_eval", "nltk", "wonderwords")):
            raise UserError(f"task=ruler needs lm-eval, nltk and wonderwords: {pip_install('eval')}")
        self.lengths, self.samples = wholes("task.lengths", lengths), whole("task.samples", samples)
        if min(self.lengths) < 256:  # no set fits into less, and FWE's vocabulary is a fiftieth of the length
            raise UserError(f"task.lengths: {min(self.lengths)} tokens are too few for RULER: 256 or more")
        self.sets = [choice("task.sets", name, tuple(SETS)) for name in listed("task.sets", sets)]
        self.chat = None if chat is None else flag("task.chat", chat)

    def prepare(self, prompter: Prompter) -> None:
        if prompter.longest is not None and max(self.lengths) > prompter.longest:
            raise UserError(f"task.lengths: {max(self.lengths)} tokens are more than the model's {prompter.longest}")
        if self.chat and getattr(prompter.tokenizer, "chat_template", None) is None:
            raise UserError("task.chat: this tokenizer has no chat template; set task.chat=false")
        self.prompter = prompter if self.chat is None else prompter.with_chat(self.chat)

    def size(self, seed: int) -> int:
        return len(self.sets) * len(self.lengths) * self.samples

    def data_checksum(self) -> str:
        return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("lm-eval", "wonderwords", "nltk"))

    def sample(self, seed: int, index: int) -> Sample:
        rest, place = divmod(index, len(self.sets))
        name, (repeat, place) = self.sets[place], divmod(rest, len(self.lengths))
        length, extra = self.lengths[place], 0
        try:
            while True:  # ends: a generator that must leave more and more free raises TooFew or ValueError
                with seeded(seed, index):
                    made = SETS[name].make(Request(self.prompter.tokenizer, length, extra, seed, repeat))
                sample = self._sample(name, length, f"{seed}-{index}", made)
                over = len(self.encode(sample).ids) + sample.max_new_tokens - length
                if over <= 0:
                    return sample
                extra += over
        except (TooFew, ValueError) as error:
            raise UserError(f"task.lengths: {length} tokens are too few for {name}") from error

    def _sample(self, name: str, length: int, label: str, made: dict) -> Sample:
        """What a generator made, cut where its question starts; the prefix ends the question, after the frame."""
        kind, text = SETS[name], made["input"]
        start = text.rfind(f"\n{kind.question}") + 1
        context, answers = text[:start], tuple(str(answer) for answer in made["outputs"])
        found = [list(re.finditer(kind.span.format(re.escape(answer)), context)) for answer in answers if kind.span]
        if not start or not all(found):
            raise UserError(f"task.sets: this lm-eval words {name} in a way not known here: install lm-eval 0.4.13")
        joint = self.prompter.after if self.prompter.chat else kind.joint
        question, label = f"{text[start:]}{joint}{made['gen_prefix']}", f"{name}/{length}/{label}"
        spans = {f"needle_{n}" if n else "needle": matches[-1].span() for n, matches in enumerate(found)}
        more = {"stratum": name, "spans": spans, "info": {"set": name, "length": length, "bucket": f"{length} tokens"}}
        return Sample(label, context, question, answers, kind.tokens, **more)

    def encode(self, sample: Sample) -> Prompt:
        head, start = self.prompter.before, len(self.prompter.before)
        spans = {name: (start + first, start + last) for name, (first, last) in sample.spans.items()}
        text, end = f"{head}{sample.context}{sample.question}", start + len(sample.context)
        return self.prompter.tokens(text, end, spans, special=not self.prompter.chat)

    def score(self, sample: Sample, output: str) -> dict[str, float]:
        metric = "string_match_part" if sample.stratum.startswith("qa_") else self.primary
        return {metric: share_of_substrings(sample.answers, re.sub(r"[\x00-\x1f]", "\n", output.strip()).strip())}


def module(name: str):
    """A module of lm-eval's ruler group, imported without the download that it would wait for."""
    try:
        with seeded(0, 0), mock.patch("nltk.download"):
            return importlib.import_module(f"lm_eval.tasks.ruler.{name}")
    except (ImportError, AssertionError) as error:
        raise UserError(f"task=ruler: lm-eval cannot be used: {str(error).splitlines()[0]}") from error


def essays() -> list[str]:
    """The words of the essays that five sets hide needles in, from the hub."""
    try:
        importlib.import_module("nltk").data.find("tokenizers/punkt_tab")
        return module("prepare_niah").get_haystack("essay")
    except Exception as error:  # what the hub raises without a network has many types
        needs = "`python -m nltk.downloader punkt_tab` and the hub's baber/paul_graham_essays"
        raise UserError(f"task.sets: essay sets need {needs} (missing: {type(error).__name__})") from error


@contextlib.contextmanager
def seeded(seed: int, index: int):
    """Silence, and the global generators that lm-eval draws from are functions of (seed, index), then put back."""
    states = random.getstate(), np.random.get_state()
    words = np.random.SeedSequence([seed, index]).generate_state(8)
    random.seed(words.tobytes())
    np.random.seed(words)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
