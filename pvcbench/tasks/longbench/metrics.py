"""LongBench's metrics, equal to the numbers of its own evaluation script (github.com/THUDM/LongBench, metrics.py).

    >>> METRICS["qa_f1"]("The red fox.", "a red fox", [])
    1.0

Each takes an output, one gold answer and the set's classes, and gives a score in [0, 1].
"""

import difflib
import importlib
import importlib.util
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from pvcbench.config.extras import pip_install
from pvcbench.errors import UserError

FIRST_LINE = ("trec", "triviaqa", "samsum", "lsht")  # sets of which only the first line of an answer counts
NEEDS = {"rouge_l": ("rouge",), "rouge_l_zh": ("rouge", "jieba"), "qa_f1_zh": ("jieba",)}
# What counts as punctuation in Chinese answers, as ranges of code points; the left one of 《》 does not, as there.
_CHINESE = [
    *[(0x2013, 0x2014), (0x2018, 0x2019), (0x201B, 0x201F), (0x2026, 0x2027), (0x3001, 0x3003), (0x300B, 0x3011)],
    *[(0x3014, 0x301F), (0x3030, 0x3030), (0x303E, 0x303F), (0xFE4F, 0xFE4F), (0xFF01, 0xFF0D), (0xFF0F, 0xFF0F)],
    *[(0xFF1A, 0xFF20), (0xFF3B, 0xFF40), (0xFF5B, 0xFF64)],
]
_ENGLISH = str.maketrans("", "", string.punctuation)
PUNCTUATION = _ENGLISH | {code: None for first, last in _CHINESE for code in range(first, last + 1)}


def require(metric: str) -> None:
    """Refuses a metric whose packages are not installed, before a model has run for hours."""
    missing = [name for name in NEEDS.get(metric, ()) if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"LongBench's {metric} needs {missing[0]}: {pip_install('longbench')}")


def _package(metric: str, name: str):
    require(metric)
    return importlib.import_module(name)


def overlap(said: Sequence[str], gold: Sequence[str]) -> float:
    """F1 of two bags of words."""
    common = sum((Counter(said) & Counter(gold)).values())
    return 2 * common / (len(said) + len(gold)) if common else 0.0


def squad_words(text: str) -> list[str]:
    """Lower-case words without punctuation and articles."""
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_ENGLISH)).split()


def _segments(text: str, metric: str) -> list[str]:
    """Chinese text in jieba's segments."""
    jieba = _package(metric, "jieba")
    jieba.setLogLevel("ERROR")
    return list(jieba.cut(text, cut_all=False))


def _words_zh(text: str) -> list[str]:
    words = ("".join(word.lower().translate(PUNCTUATION).split()) for word in _segments(text, "qa_f1_zh"))
    return [word for word in words if word]


def qa_f1(output: str, answer: str, classes: Sequence[str]) -> float:
    """SQuAD's F1 over words."""
    return overlap(squad_words(output), squad_words(answer))


def qa_f1_zh(output: str, answer: str, classes: Sequence[str]) -> float:
    """F1 over jieba's words."""
    return overlap(_words_zh(output), _words_zh(answer))


def rouge_l(output: str, answer: str, classes: Sequence[str]) -> float:
    """F of ROUGE-L by the PyPI package `rouge`; 0 where that raises, as for empty texts, and as in the original.

    It recurses once a word, so a sentence of about a thousand words raises, too. A thread of its own makes that
    a function of the texts: its stack is always equally deep.
    """
    scorer = _package("rouge_l", "rouge").Rouge(metrics=["rouge-l"])
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = pool.submit(scorer.get_scores, output, answer)
        try:
            return waiting.result()[0]["rouge-l"]["f"]
        except (ValueError, RecursionError):
            return 0.0


def rouge_l_zh(output: str, answer: str, classes: Sequence[str]) -> float:
    """ROUGE-L over jieba's words."""
    return rouge_l(*(" ".join(_segments(text, "rouge_l_zh")) for text in (output, answer)), classes)


def classification(output: str, answer: str, classes: Sequence[str]) -> float:
    """One over the number of classes named in the output, if the right one is among them.

    Classes whose names lie within the right one's do not count, except those that stand right after another such
    class: the original removes from the list it walks over, and its published numbers come from that.
    """
    found = [name for name in classes if name in output]
    for name in found:
        if name in answer and name != answer:
            found.remove(name)
    return 1 / len(found) if answer in found else 0.0


def _share_of_numbers(output: str, gold: str) -> float:
    numbers = re.findall(r"\d+", output)
    return numbers.count(gold) / len(numbers) if numbers else 0.0


def _retrieval(label: str) -> Callable[[str, str, Sequence[str]], float]:
    def score(output: str, answer: str, classes: Sequence[str]) -> float:
        """The share of the output's numbers that name the right paragraph."""
        gold = re.search(rf"{label}(\d+)", answer)
        if gold is None:
            raise UserError(f"a gold answer of LongBench's retrieval names no paragraph: {answer!r}; check the data")
        return _share_of_numbers(output, gold[1])

    return score


def count(output: str, answer: str, classes: Sequence[str]) -> float:
    """The share of the output's numbers that equal the right one."""
    return _share_of_numbers(output, answer)


def code_similarity(output: str, answer: str, classes: Sequence[str]) -> float:
    """Likeness, in whole per cent, of the first line that is neither a comment nor a fence (fuzzywuzzy on difflib)."""
    lines = output.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    return round(100 * difflib.SequenceMatcher(None, line, answer).ratio()) / 100


METRICS = {
    "qa_f1": qa_f1,
    "qa_f1_zh": qa_f1_zh,
    "rouge_l": rouge_l,
    "rouge_l_zh": rouge_l_zh,
    "classification": classification,
    "retrieval": _retrieval("Paragraph "),
    "retrieval_zh": _retrieval("段落"),
    "count": count,
    "code_similarity": code_similarity,
}


def best(name: str, metric: str, output: str, answers: Sequence[str], classes: Sequence[str]) -> float:
    """The best score over the gold answers of one item of the set with this name."""
    if name in FIRST_LINE:
        output = output.lstrip("\n").split("\n")[0]
    return max((METRICS[metric](output, answer, classes) for answer in answers), default=0.0)
