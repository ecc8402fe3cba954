"""The metrics by name: each function, its benchmark, what it reads and needs, and in what the original differs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from pvcbench.config.extras import pip_install
from pvcbench.errors import UserError
from pvcbench.tasks import metrics as own
from pvcbench.tasks.qa.scorers import choices, numbers, words

Score = Callable[[str, Sequence[str], Mapping], float]


@dataclass(frozen=True)
class Metric:
    """A score of an output; `parity` is the original's, where it differs, and `differs` says in what."""

    score: Score
    of: str = ""  # the benchmark whose script says so
    parity: Score | None = None
    differs: str = ""
    reads: tuple[str, ...] = ()  # columns beside the answers
    options: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()  # packages


def _own(score: Callable) -> Score:
    def scored(output: str, answers: Sequence[str], given: Mapping) -> float:
        return score(answers, output)

    scored.__doc__ = score.__doc__
    return scored


ROUGE, MATH = ("rouge_score",), ("math_verify",)
METRICS: dict[str, Metric] = {
    "contains": Metric(_own(own.any_found)),
    "contains_all": Metric(_own(own.share_found)),
    "exact": Metric(_own(own.exact)),
    "f1": Metric(_own(own.token_f1)),
    "substring": Metric(words.substring, "NoLiMa, SCBench"),
    "substring_caseless": Metric(words.substring_caseless, "lost in the middle, SCBench"),
    "substring_all": Metric(
        words.substring_all, "RULER, SCBench", words.substring_all_scbench, "SCBench rounds every item to two digits"
    ),
    "ruler_kvpress_all": Metric(words.ruler_kvpress_all, "kvpress"),
    "ruler_kvpress_part": Metric(words.ruler_kvpress_part, "kvpress"),
    "substring_squad": Metric(words.substring_squad, "lost in the middle, HELMET"),
    "squad_f1": Metric(words.squad_f1, "InfiniteBench, L-Eval"),
    "characters_f1": Metric(words.characters_f1, "InfiniteBench, SCBench"),
    "dialogue": Metric(
        words.dialogue,
        "InfiniteBench",
        words.dialogue_infinitebench,
        "the original takes the first name alone, as one word in capitals, which a name of two words never is",
    ),
    "rouge_lsum": Metric(words.rouge_lsum, "InfiniteBench, SCBench", needs=ROUGE),
    "rouge_mean": Metric(words.rouge_mean, "L-Eval", needs=ROUGE),
    "rouge_recall": Metric(
        words.rouge_recall,
        "LooGLE",
        words.rouge_recall_loogle,
        "the original scores an empty answer as the word None",
        options=("measure",),
        needs=("rouge",),
    ),
    "bleu": Metric(
        words.bleu,
        "LooGLE",
        words.bleu_loogle,
        "the original's BLEU-4 weighs runs of four words alone",
        options=("order",),
        needs=("nltk",),
    ),
    "cloze": Metric(
        words.cloze,
        "LooGLE",
        words.cloze_loogle,
        "the original takes no dictionary with words or a code fence around it",
        options=("match",),
    ),
    "mrcr": Metric(words.mrcr, "MRCR", reads=("random_string_to_prepend",)),
    "babilong": Metric(
        words.babilong,
        "BABILong",
        words.babilong_original,
        "the original compares substrings: the right answer `none` of qa7 holds `one` and is always wrong",
        reads=("input",),
        options=("labels",),
    ),
    "choice": Metric(
        choices.choice,
        "InfiniteBench, SCBench",
        choices.choice_infinitebench,
        "the original takes the first character if it is A to D: `Answer: C` is A, and `Clearly B` is C",
    ),
    "choice_exam": Metric(
        choices.choice_exam,
        "L-Eval",
        choices.choice_leval,
        "the original takes the first of the letters A to D in any word, and A where there is none",
    ),
    "choices": Metric(
        choices.choices, "L-Eval", choices.choices_leval, "the original takes A where an answer names no letter"
    ),
    "choice_phrase": Metric(
        choices.choice_phrase,
        "LongBench v2",
        choices.choice_phrase_longbench,
        "the original reads `The correct answer is Darwin` as D",
    ),
    "choice_phrase_anywhere": Metric(choices.choice_phrase_anywhere, "kvpress"),
    "code_debug": Metric(
        choices.code_debug,
        "InfiniteBench",
        choices.code_debug_infinitebench,
        "the original does not count the right letter alone",
    ),
    "shot": Metric(
        choices.shot, "SCBench", choices.shot_scbench, "the original counts any character of the gold answer anywhere"
    ),
    "true_or_false": Metric(
        choices.true_or_false, "L-Eval", choices.true_or_false_leval, "the original reads `untrue` as true"
    ),
    "first_digits": Metric(numbers.first_digits, "InfiniteBench, landmark attention"),
    "word_of_output": Metric(numbers.word_of_output, "InfiniteBench"),
    "last_integer": Metric(numbers.last_integer, "InfiniteBench"),
    "first_number": Metric(
        numbers.first_number,
        "InfiniteBench",
        numbers.first_number_infinitebench,
        "the original drops signs and commas, and stops with an error at 3.5 where 3 is right",
    ),
    "first_number_scbench": Metric(
        numbers.first_number,
        "SCBench",
        numbers.first_number_scbench,
        "the original drops signs and commas, and the fraction where a whole number is right: 3.9 is 3",
    ),
    "leading_values": Metric(
        numbers.leading_values,
        "InfiniteBench",
        numbers.leading_values_infinitebench,
        "the original drops signs, so that the first negative value ends the list",
        options=("skip",),
    ),
    "answer_is": Metric(
        numbers.answer_is, "L-Eval", numbers.answer_is_leval, "the original drops signs and fractions: -1.5 is 1"
    ),
    "without_blanks": Metric(numbers.without_blanks, "L-Eval"),
    "math_verify": Metric(
        numbers.math_verify,
        "math-verify",
        numbers.boxed_kvpress,
        "kvpress cuts the last box at the first closing brace and compares texts",
        needs=MATH,
    ),
    "math_verify_first": Metric(
        numbers.math_verify,
        "math-verify",
        numbers.first_boxed_kvpress,
        "kvpress cuts the first box at the first closing brace and compares texts",
        needs=MATH,
    ),
    "boxed": Metric(numbers.boxed),
}
EXTRA = {"rouge_score": "qa", "rouge": "qa", "nltk": "qa"}


def require(name: str) -> None:
    """Refuses a metric whose packages are not installed, before a model has run for hours."""
    missing = [package for package in METRICS[name].needs if find_spec(package) is None]
    if missing:
        command = pip_install(EXTRA[missing[0]]) if missing[0] in EXTRA else "pip install math-verify"
        raise UserError(f"metric {name} needs {missing[0]}: {command}")
