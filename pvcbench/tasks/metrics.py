"""Scores of an answer, as their reference implementations define them."""

import re
from collections.abc import Sequence


def share_found(answers: Sequence[str], output: str) -> float:
    """The share of the gold answers that occur in the output, letter case aside (RULER's string_match_all)."""
    return sum(answer.lower() in output.lower() for answer in answers) / len(answers)


def any_found(answers: Sequence[str], output: str) -> float:
    """1 if any gold answer occurs in the output, letter case aside."""
    return float(any(answer.lower() in output.lower() for answer in answers))


def exact(answers: Sequence[str], output: str) -> float:
    """1 if the output equals a gold answer, letter case and surrounding white space aside."""
    return float(any(answer.strip().lower() == output.strip().lower() for answer in answers))


def words(text: str) -> list[str]:
    """Lower-case runs of letters and digits."""
    return re.findall(r"[a-z0-9]+", text.lower())


def rouge1_recall(answer: str, output: str) -> float:
    """The share of the answer's words found in the output, times 10: a weak score of the classic needle test."""
    gold, said = words(answer), words(output)
    return 10 * sum(min(gold.count(word), said.count(word)) for word in set(gold)) / len(gold)


def token_overlap(answer: str, output: str) -> float:
    """The share of the answer's distinct words found in the output: the other weak score of the classic test."""
    gold = set(words(answer))
    return len(gold & set(words(output))) / len(gold)


def token_f1(answers: Sequence[str], output: str) -> float:
    """The best F1 of the output's words against a gold answer's (SQuAD's, without its article rule)."""
    return max(_f1(words(answer), words(output)) for answer in answers)


def _f1(gold: list[str], said: list[str]) -> float:
    common = sum(min(gold.count(word), said.count(word)) for word in set(gold))
    return 2 * common / (len(gold) + len(said)) if common else 0.0
