"""Scores of a chosen letter. Gold answers are the letter, then the text of the choice where it is known."""

import re
from collections.abc import Mapping, Sequence

from pvcbench.tasks.metrics import occurs

MARKED = r"(?:[(\[]\s*([A-D])\s*[)\]]|\b([A-D])\b)"  # (B), [B] or B
SAID = re.compile(rf"\b(?i:answer|option|choice)\b(?i:\s+(?:is|would be|letter))*[\s:*\"'`]*{MARKED}")
STARTS = re.compile(rf"[\s*\"'`]*{MARKED}")


def letter_of(output: str, answers: Sequence[str] = ()) -> str | None:
    """The letter from A to D that an output chooses; None where it chooses none, or names several.

    What stands first counts, then what follows words such as `answer is`, then the only letter that stands alone. The
    word A before another word is an article.
    """
    for pattern, find in ((STARTS, re.Pattern.match), (SAID, re.Pattern.search)):
        found = find(pattern, output)
        if found and not _article(output, found):
            return found[1] or found[2]
    named = {found[1] or found[2] for found in re.finditer(MARKED, output) if not _article(output, found)}
    return named.pop() if len(named) == 1 else None


def _article(output: str, found: re.Match) -> bool:
    return found[2] == "A" and re.match(r"\s+[\w\"']", output[found.end() :]) is not None


def choice(output: str, answers: Sequence[str], given: Mapping) -> float:
    """1 if the output chooses the right letter, or names no letter and says the right choice's text."""
    said = letter_of(output)
    if said is None:
        return float(any(occurs(text, output) for text in answers[1:]))
    return float(said == answers[0])


def choice_infinitebench(output: str, answers: Sequence[str], given: Mapping) -> float:
    """By the first character, whatever word it begins; then by phrases; then by the first word among A, B, C and D."""
    text = output.strip()
    if not text:
        return 0.0
    if text[0] in "ABCD":
        return float(text[0] in answers)
    if text in answers:
        return 1.0
    for mark in "\n\"'.,?!{}":
        text = text.replace(mark, " ")
    text = re.sub(" +", " ", text)
    told = _after(text, ("answer is:", "answer:", "answer is", "option is"), answers)
    return told if told is not None else next((float(word in answers) for word in text.split() if word in "ABCD"), 0.0)


def choice_phrase(output: str, answers: Sequence[str], given: Mapping) -> float:
    """1 if `The correct answer is (X)`, or the same without brackets, names the right letter; asterisks are aside."""
    return _phrase(output, answers, r"\b")


def choice_phrase_longbench(output: str, answers: Sequence[str], given: Mapping) -> float:
    """The same, where a word such as Darwin stands for its first letter."""
    return _phrase(output, answers, "")


def _phrase(output: str, answers: Sequence[str], end: str) -> float:
    text = output.replace("*", "")
    found = re.search(r"The correct answer is \(([A-D])\)", text)
    found = found or re.search(rf"The correct answer is ([A-D]){end}", text)
    return float(found is not None and found[1] == answers[0])


def choice_phrase_anywhere(output: str, answers: Sequence[str], given: Mapping) -> float:
    """1 if the output holds `The correct answer is (X)` of the right letter anywhere, as kvpress counts."""
    return float(f"The correct answer is ({answers[0]})" in output)


def code_debug(output: str, answers: Sequence[str], given: Mapping) -> float:
    """1 for the right letter with a point or colon, or alone, or a phrase with the letter or the function's name."""
    return float(output.strip() == answers[0] or code_debug_infinitebench(output, answers, given) == 1)


def code_debug_infinitebench(output: str, answers: Sequence[str], given: Mapping) -> float:
    """The same without the letter alone."""
    text = output.strip()
    if text[:2] in (f"{answers[0]}.", f"{answers[0]}:"):
        return 1.0
    for mark in ("\n", "`", "'", '"', "-", "*", "Option", "option"):
        text = text.replace(mark, " ")
    text = re.sub(" +", " ", text)
    return _after(text, ("answer is:", "is:", "answer:", "correct option is:"), answers) or 0.0


def _after(text: str, phrases: Sequence[str], answers: Sequence[str]) -> float | None:
    """Whether a right answer stands, a character on, behind the first of these phrases that there is; None: none is."""
    phrase = next((one for one in phrases if one in text), None)
    if phrase is None:
        return None
    rest = text[text.index(phrase) + len(phrase) + 1 :]
    return float(bool(rest) and any(rest.startswith(gold) for gold in answers))


def choice_leval(output: str, answers: Sequence[str], given: Mapping) -> float:
    """1 for the right letter, by the first of the letters A to D anywhere; none is A."""
    said = "None" if not output.strip() else output if output in "ABCD" else None
    said = said or next((letter for letter in output if letter in "ABCD"), None) or _letters_leval(output)
    return _exam(said, _gold(answers[0]))


def choice_exam(output: str, answers: Sequence[str], given: Mapping) -> float:
    """1 if the output chooses the letter that the gold answer begins with, or says the text behind it."""
    text = re.sub(r"^\s*\(?[A-D]\)?[.:]?\s*", "", answers[0])
    return choice(output, [_gold(answers[0]), *([text] if text.strip() else [])], given)


def choices(output: str, answers: Sequence[str], given: Mapping) -> float:
    """Several letters: 1 for the right ones, a quarter for some of them and no wrong one."""
    gold = {letter for letter in answers[0].split()[0] if letter in "ABCD"}
    found = re.search(r"(?<!\w)([A-D](?:[\s,;/&]*(?:and\s+)?[A-D])*)(?!\w)", output)
    said = set(re.findall("[A-D]", found[1])) if found else set()
    return 1.0 if said == gold else 0.25 if said and said < gold else 0.0


def choices_leval(output: str, answers: Sequence[str], given: Mapping) -> float:
    """The same by L-Eval's own reading: none is A, and the word None has no letter that is not right but N, o, n, e."""
    if not output.strip():
        return _exam("None", _gold(answers[0]))
    return _exam(output if output in "ABCD" else _letters_leval(output), _gold(answers[0]))


def _letters_leval(output: str) -> str:
    """Letters at the start; else capitals before a blank, point or bracket; else the first run of them; else A."""
    start = re.match("[A-D]*", output)[0]
    if len(start) > 1:
        return "".join(sorted(set(start)))
    text = output[len(start) :].split("Question", maxsplit=1)[0]
    named = start + " ".join(re.findall(r"\s*[A-Z](?=[\s.)])", text)).strip()
    letters = "".join(sorted(set(re.sub("[^A-D]", "", named))))
    run = re.search("[A-D]+", text)
    return letters or (run[0] if run else "A")


def _gold(answer: str) -> str:
    return re.sub("[^A-D]", "", answer.split(maxsplit=1)[0]) or "A"


def _exam(said: str, gold: str) -> float:
    return 1.0 if said == gold else 0.25 if set(said) <= set(gold) else 0.0


def shot(output: str, answers: Sequence[str], given: Mapping) -> float:
    """1 if the output chooses the letter of the gold answer, such as (C)."""
    gold = re.search(r"[A-Za-z]", answers[0])
    found = re.match(r"[\s*\"'`]*\(?([A-Z])\b\)?", output) or re.search(r"\(([A-Z])\)", output)
    return float(gold is not None and found is not None and found[1] == gold[0].upper())


def shot_scbench(output: str, answers: Sequence[str], given: Mapping) -> float:
    """1 if any character of the gold answer stands in the output, letter case aside."""
    return float(any(letter.upper() in output.strip().upper() for letter in answers[0]))


def true_or_false(output: str, answers: Sequence[str], given: Mapping) -> float:
    """1 if the first of the words true and false is the right one; the answer may have `[fact: ...]` behind it."""
    return _judged(output, answers, r"\b(true|false)\b")


def true_or_false_leval(output: str, answers: Sequence[str], given: Mapping) -> float:
    """The same for words that hold true or false, such as untrue."""
    text = output.lower().split("[fact:")[0]
    said = next((kind for word in text.split() for kind in ("true", "false") if kind in word), "<error>")
    return float(answers[0].lower().split("[fact:")[0].strip() in said)


def _judged(output: str, answers: Sequence[str], pattern: str) -> float:
    found = re.search(pattern, output.lower())
    return float(found is not None and found[1] == answers[0].lower().split("[fact:")[0].strip())
