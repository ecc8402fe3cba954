"""Scores of numbers: the first, the last, a list, and mathematics by the package `math-verify`."""

import re
import threading
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation

NUMBER = r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
SECONDS = 5
BOX = re.compile(r"\\f?boxed\s*\{")


def value_of(text: str) -> Decimal | None:
    """A number as written, without commas between groups of digits."""
    try:
        return Decimal(text.replace(",", ""))
    except InvalidOperation:
        return None


def first_digits(output: str, answers: Sequence[str], given: Mapping) -> float:
    """1 if the first run of digits is the right one."""
    found = re.search("[0-9]+", output)
    return float(found is not None and found[0] == answers[0])


def word_of_output(output: str, answers: Sequence[str], given: Mapping) -> float:
    """1 if the right value is one of the output's words; punctuation parts words, hyphens do not."""
    for mark in '\n:"' + "'.,?!{}":
        output = output.replace(mark, " ")
    return float(any(answer in output.split() for answer in answers))


def last_integer(output: str, answers: Sequence[str], given: Mapping) -> float:
    """1 if the last word is the right whole number."""
    for mark in "\n.`'\":":
        output = output.replace(mark, " ")
    words = output.split()
    try:
        return float(bool(words) and int(words[-1]) == int(answers[0]))
    except ValueError:
        return 0.0


def first_number(output: str, answers: Sequence[str], given: Mapping) -> float:
    """1 if the first number equals the right one, its sign and fraction too."""
    found = re.search(NUMBER, output)
    return float(found is not None and value_of(found[0]) == value_of(answers[0]))


def first_number_infinitebench(output: str, answers: Sequence[str], given: Mapping) -> float:
    """The same without signs and commas; a fraction where a whole number is right stops the original, and is wrong."""
    found = re.search(r"\d+\.\d+|\d+", output)
    if found is None or ("." in found[0] and "." not in answers[0]):
        return 0.0
    return float(float(found[0]) == float(answers[0]))


def first_number_scbench(output: str, answers: Sequence[str], given: Mapping) -> float:
    """The same, where the fraction is dropped if a whole number is right: 3.9 is 3."""
    found = re.search(r"\d+\.\d+|\d+", output)
    if found is None:
        return 0.0
    return float((float(found[0]) if "." in answers[0] else int(float(found[0]))) == float(answers[0]))


def leading_values(output: str, answers: Sequence[str], given: Mapping) -> float:
    """The share of a list's values that are right before the first wrong one; `skip` values are passed over first."""
    return _leading(re.findall(r"-?\d+", output), answers, given)


def leading_values_infinitebench(output: str, answers: Sequence[str], given: Mapping) -> float:
    """The same for values without their signs, so that the first negative one ends the list."""
    return _leading(re.findall("[0-9]+", output), answers, given)


def _leading(said: list[str], answers: Sequence[str], given: Mapping) -> float:
    values = [int(one) for one in said][int(given.get("skip", 0)) :]
    right = 0
    for gold, value in zip(answers, values, strict=False):
        if int(gold) != value:
            break
        right += 1
    return right / len(answers)


def answer_is(output: str, answers: Sequence[str], given: Mapping) -> float:
    """1 if the number after `The answer is`, or else the last number, equals the right one."""
    return float(_stated(output) is not None and _stated(output) == _stated(answers[0]))


def _stated(text: str) -> Decimal | None:
    found = re.search(rf"The answer is\s*\$?\s*({NUMBER})", text)
    every = [found[1]] if found else re.findall(NUMBER, text)
    return value_of(every[-1]) if every else None


def answer_is_leval(output: str, answers: Sequence[str], given: Mapping) -> float:
    """The same for the digits before a point: signs, fractions and what is no digit are dropped."""
    said, gold = _digits(output), _digits(answers[0])
    try:
        return float(float(said) == float(gold))
    except ValueError:
        return float(gold in said)


def _digits(text: str) -> str:
    found = re.search(r"The answer is (\S+)", text)
    words = text.split("\n\n", maxsplit=1)[0].split(" ")[::-1]
    word = found[1] if found else next((one for one in words if any(letter.isdigit() for letter in one)), "")
    return "".join(letter for letter in word.partition(".")[0] if letter.isdigit())


def without_blanks(output: str, answers: Sequence[str], given: Mapping) -> float:
    """1 if a gold answer stands in the output, letter case and blanks aside."""
    said = output.lower().replace(" ", "")
    return float(any(answer.lower().replace(" ", "") in said for answer in answers))


def box_of(output: str) -> str | None:
    """What stands in the last balanced box after the thoughts; None where there is none."""
    text = output.rpartition("</think>")[2]
    for start in reversed([found.end() for found in BOX.finditer(text)]):
        depth = 1
        for place in range(start, len(text)):
            if text[place] in "{}" and text[place - 1] != "\\":
                depth += 1 if text[place] == "{" else -1
            if not depth:
                return text[start:place]
    return None


def math_verify(output: str, answers: Sequence[str], given: Mapping) -> float:
    """1 if the last balanced box after the thoughts equals the right answer, by the package `math-verify`."""
    box = box_of(output)
    return float(box is not None and any(equal(answer, box) for answer in answers))


def equal(gold: str, said: str) -> bool:
    """Whether two answers are the same number, set, interval, expression or text.

    What takes longer than `SECONDS` to read or to compare, such as a tower of powers, is not equal. The package stops
    by a signal, which only the main thread gets.
    """
    if gold.strip() == said.strip():
        return True
    from math_verify import LatexExtractionConfig, parse, verify

    limit = SECONDS if threading.current_thread() is threading.main_thread() else None

    def read(text: str) -> list:
        text = f"\\boxed{{{text}}}"
        return parse(text, [LatexExtractionConfig()], parsing_timeout=limit, raise_on_error=False)

    left, right = read(gold), read(said)
    return bool(left and right) and bool(verify(left, right, timeout_seconds=limit, raise_on_error=False))


def boxed(output: str, answers: Sequence[str], given: Mapping) -> float:
    """1 if there is a balanced box after the thoughts: without one an answer cannot be right."""
    return float(box_of(output) is not None)


def boxed_kvpress(output: str, answers: Sequence[str], given: Mapping) -> float:
    """1 if the text from the last box to the first closing brace is the right answer, as kvpress reads AIME's."""
    return _kvpress(output, answers, output.rfind("boxed{"))


def first_boxed_kvpress(output: str, answers: Sequence[str], given: Mapping) -> float:
    """The same for the first box, as kvpress reads MATH-500's."""
    return _kvpress(output, answers, output.find("boxed{"))


def _kvpress(output: str, answers: Sequence[str], start: int) -> float:
    said = output[start + len("boxed{") :].partition("}")[0] if start >= 0 else output
    return float(said.strip() == answers[0].strip())
