"""Scores by words and characters: substrings, F1, ROUGE, BLEU.

Where a benchmark's script has a result of its own that is wrong, ours is right and the script's stands beside it
under the name of its benchmark, for `parity: true`.
"""

import ast
import json
import re
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import import_module

from pvcbench.tasks.longbench.metrics import PUNCTUATION, overlap, squad_words
from pvcbench.tasks.metrics import any_found


def squad(text: str) -> str:
    """Lower case, without punctuation, articles and extra blanks, as SQuAD's script normalises."""
    return " ".join(squad_words(text))


def substring(output: str, answers: Sequence[str], given: Mapping) -> float:
    """1 if a gold answer stands in the output, letter by letter."""
    return float(any(answer in output for answer in answers))


def substring_caseless(output: str, answers: Sequence[str], given: Mapping) -> float:
    """1 if a gold answer stands in the output, letter case aside."""
    return float(any(answer.upper() in output.upper() for answer in answers))


def substring_all(output: str, answers: Sequence[str], given: Mapping) -> float:
    """The share of the gold answers that stand in the output, letter case aside."""
    return sum(answer.lower() in output.lower() for answer in answers) / len(answers)


def substring_all_scbench(output: str, answers: Sequence[str], given: Mapping) -> float:
    """The same, rounded to two digits for every item."""
    return round(substring_all(output, answers, given), 2)


def ruler_kvpress_all(output: str, answers: Sequence[str], given: Mapping) -> float:
    """The same, after control characters are deleted from the output."""
    return substring_all(re.sub(r"[\x00-\x1f]", "", output.strip()).strip(), answers, given)


def ruler_kvpress_part(output: str, answers: Sequence[str], given: Mapping) -> float:
    """1 if any gold answer stands in the output without its control characters, letter case aside."""
    return float(ruler_kvpress_all(output, answers, given) > 0)


def substring_squad(output: str, answers: Sequence[str], given: Mapping) -> float:
    """1 if a normalised gold answer stands in the normalised output."""
    return float(any(squad(answer) in squad(output) for answer in answers))


def squad_f1(output: str, answers: Sequence[str], given: Mapping) -> float:
    """The best F1 of normalised words."""
    return max(overlap(squad_words(output), squad_words(answer)) for answer in answers)


def characters_f1(output: str, answers: Sequence[str], given: Mapping) -> float:
    """The best F1 of characters, without punctuation and blanks, for Chinese."""

    def letters(text: str) -> str:
        return "".join(text.lower().translate(PUNCTUATION).split())

    return max(overlap(letters(output), letters(answer)) for answer in answers)


def dialogue(output: str, answers: Sequence[str], given: Mapping) -> float:
    """1 if any of the names of the right character occurs as whole words."""
    return any_found(answers, output)


def dialogue_infinitebench(output: str, answers: Sequence[str], given: Mapping) -> float:
    """1 if the first name is one of the output's words in capitals: a name of two words never is."""
    for mark in '\n:"' + "'.,?!{}":
        output = output.replace(mark, " ")
    return float(answers[0] in [word.upper() for word in output.split()])


@cache
def _scorer(kinds: tuple[str, ...], stemmer: bool):
    return import_module("rouge_score.rouge_scorer").RougeScorer(list(kinds), use_stemmer=stemmer)


def rouge_lsum(output: str, answers: Sequence[str], given: Mapping) -> float:
    """The best F of rougeLsum, by the package `rouge_score`."""
    scorer = _scorer(("rougeLsum",), False)
    return max(scorer.score(answer, output)["rougeLsum"].fmeasure for answer in answers)


def rouge_mean(output: str, answers: Sequence[str], given: Mapping) -> float:
    """The geometric mean of the best F of rouge1, rouge2 and rougeL, by the package `rouge_score`."""
    scorer = _scorer(("rouge1", "rouge2", "rougeL"), False)
    found = [scorer.score(answer, output) for answer in answers]
    product = 1.0
    for kind in ("rouge1", "rouge2", "rougeL"):
        product *= max(one[kind].fmeasure for one in found)
    return product ** (1 / 3)


def rouge_recall(output: str, answers: Sequence[str], given: Mapping) -> float:
    """The best recall of rouge-1, rouge-2 or rouge-l (option `measure`), by the package `rouge`; 0 for an empty answer.

    The package recurses once a word: a thread of its own makes what it can take the same everywhere.
    """
    kind = str(given.get("measure", "l"))
    scorer = import_module("rouge").Rouge(metrics=[f"rouge-{kind}"])

    def best() -> float:
        return max(scorer.get_scores(output, answer)[0][f"rouge-{kind}"]["r"] for answer in answers)

    with ThreadPoolExecutor(max_workers=1) as pool:
        try:
            return pool.submit(best).result()
        except (ValueError, RecursionError):
            return 0.0


def rouge_recall_loogle(output: str, answers: Sequence[str], given: Mapping) -> float:
    """The same, with the word None in the place of an empty answer."""
    return rouge_recall(output or "None", answers, given)


def bleu(output: str, answers: Sequence[str], given: Mapping) -> float:
    """BLEU of up to `order` words (default 4), by the package `nltk`, without smoothing."""
    order = int(given.get("order", 4))
    return _bleu(output, answers, (1 / order,) * order)


def bleu_loogle(output: str, answers: Sequence[str], given: Mapping) -> float:
    """The same with all weight on the highest order."""
    order = int(given.get("order", 4))
    return _bleu(output or "None", answers, (0,) * (order - 1) + (1,))


def _bleu(output: str, answers: Sequence[str], weights: tuple[float, ...]) -> float:
    scorer = import_module("nltk.translate.bleu_score")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that an order without a match makes the score 0
        return float(max(scorer.sentence_bleu([answer.split()], output.split(), weights) for answer in answers))


def cloze(output: str, answers: Sequence[str], given: Mapping) -> float:
    """The share of masks that are filled right, from the first dictionary in the output.

    With `match: partial` one word of the right ones is enough. The answer is a JSON object.
    """
    start, end = output.find("{"), output.rfind("}")
    return _cloze(output[start : end + 1] if 0 <= start < end else output, answers, given)


def cloze_loogle(output: str, answers: Sequence[str], given: Mapping) -> float:
    """The same, where the whole output must be the dictionary."""
    return _cloze(output, answers, given)


def _cloze(text: str, answers: Sequence[str], given: Mapping) -> float:
    gold = json.loads(answers[0])
    try:
        said = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return 0.0
    if not isinstance(said, dict):
        return 0.0
    right = 0
    for mask, name in gold.items():
        word = said.get(mask)
        if isinstance(word, str):
            right += bool(set(word.split()) & set(name.split())) if given.get("match") == "partial" else word == name
    return right / len(gold)


def mrcr(output: str, answers: Sequence[str], given: Mapping) -> float:
    """The likeness (difflib) of what follows the string that the output must begin with; 0 without it."""
    import difflib

    mark = str(given["random_string_to_prepend"])
    if not output.startswith(mark):
        return 0.0
    pairs = [(output.removeprefix(mark), answer.removeprefix(mark)) for answer in answers]
    return max(difflib.SequenceMatcher(None, said, gold).ratio() for said, gold in pairs)


def babilong(output: str, answers: Sequence[str], given: Mapping) -> float:
    """1 if the first sentence names the right labels, as whole words, and no other that the question does not name."""

    def named(text: str) -> set[str]:
        text = re.sub(r"\s*,\s*", ",", unicodedata.normalize("NFKC", text).lower())
        return {label for label in labels if re.search(rf"(?<!\w){re.escape(label)}(?!\w)", text)}

    labels = {str(label).lower() for label in given["labels"]}
    said = named(_first_sentence(output, "question")) - named(given["input"])
    target = answers[0].lower()
    return float(said == ({target} if target in labels else set(target.split(","))))


def babilong_original(output: str, answers: Sequence[str], given: Mapping) -> float:
    """The same by substrings: `none` names `one`, and `know` names `no`."""
    labels = {str(label).lower() for label in given["labels"]}
    text, question = _first_sentence(output, "Question"), given["input"].lower()
    said = {label for label in labels if label in text} - {label for label in labels if label in question}
    target = answers[0].lower()
    wanted = target.split(",") if "," in target and len(target) > 3 else [target]
    return float(all(one in said for one in wanted) and len(said) == len(wanted))


def _first_sentence(output: str, question: str) -> str:
    text = output.lower().split(".")[0]
    for mark in ("<context>", "<example>", question):
        text = text.split(mark)[0]
    return text
