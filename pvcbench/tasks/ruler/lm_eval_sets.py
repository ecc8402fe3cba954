"""Sets that lm-eval's generators write, with the model's tokenizer: three of needles, vt, cwe and fwe.

A length holds the text, the answer's prefix and the tokens to generate; a generator goes up to it in steps of its own
(25 lines from 4096 on), so prompts are up to a step shorter. lm-eval differs from RULER: CWE comes without its one-shot
example, yet leaves room for it; needle sets do not count the answer's prefix and FWE not the tokens to generate. Both
are counted here, and the example is put back where the form asks for it.
"""

import contextlib
import importlib
import io
import random
import re
from collections import Counter
from types import SimpleNamespace
from unittest import mock

import numpy as np

from pvcbench.errors import UserError
from pvcbench.tasks.ruler.request import Made, Request, TooFew


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
    settings |= {"type_haystack": type_haystack, "max_seq_length": request.length, "template": template}
    sizer = Sizer(request.tokenizer, request.length - 128, request.extra)
    return utils.generate_samples(utils.get_haystack(type_haystack), sizer, num_samples=1, **settings)[0]


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
    made = utils.sys_word_pair_random(1, request.length, sizer)[0]
    if not request.example:
        return made
    example = made["input_example"].replace(f"{made['gen_prefix']}1. ", f"{made['gen_prefix']} 1. ")  # RULER's blank
    return made | {"input": f"{example}\n{made['input']}"}


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


def written(request: Request, make, index: int, question: str, span: str | None, name: str) -> Made:
    """What a generator of lm-eval's writes for sample `index`, cut where its question starts.

    `span` is the pattern of a gold sentence, by its answer.
    """
    with seeded(request.seed, index):
        made = make(request)
    text, answers = made["input"], tuple(str(answer) for answer in made["outputs"])
    start = text.rfind(f"\n{question}") + 1
    context = text[:start]
    found = [list(re.finditer(span.format(re.escape(answer)), context)) for answer in answers if span]
    if not start or not all(found):
        raise UserError(f"task.sets: this lm-eval words {name} in a way not known here: install lm-eval 0.4.13")
    spans = {f"needle_{n}" if n else "needle": matches[-1].span() for n, matches in enumerate(found)}
    return Made(context, text[start:], made["gen_prefix"], answers, spans)


def module(name: str):
    """A module of lm-eval's ruler group, imported without the download that it would wait for."""
    try:
        with seeded(0, 0), mock.patch("nltk.download"):
            return importlib.import_module(f"lm_eval.tasks.ruler.{name}")
    except (ImportError, AssertionError) as error:
        raise UserError(f"task=ruler: lm-eval cannot be used: {str(error).splitlines()[0]}") from error


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
