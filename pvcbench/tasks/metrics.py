"""Scores of an answer, for text in any script.

Texts are compared folded: letter case, the Unicode form of a character, the kind and amount of white space and the
shape of apostrophes, quotation marks, hyphens and minus signs are aside. A superscript stays what it is: 10² is not
102. A comma, point, apostrophe or narrow space between digits belongs to the number, and numbers match as they are
written: neither "12" nor "1234" is the number "1,234"; "1,2,3" is three.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence

import regex

# Writing that does not set words apart by spaces: a character or an answer may stand inside running text there.
UNSPACED = r"[[\p{scx=Han}\p{scx=Hira}\p{scx=Kana}\p{LB=SA}]&&[\p{L}\p{N}\p{M}]]"
# Korean sets words apart, but writes particles and endings onto them.
RUNNING = rf"[{UNSPACED}[\p{{Script=Hangul}}&&\p{{L}}]]"
LETTER = rf"[[\p{{L}}\p{{N}}\p{{M}}]--{RUNNING}]"  # of a word that ends at spaces and punctuation
WORDS = regex.compile(
    rf"{UNSPACED}[\p{{M}}\u200c\u200d]*"
    r"|\p{Nd}+(?:[.,]\p{Nd}+)+(?!\p{L})"  # a number with a decimal point or groups of digits is one word
    rf"|[[\p{{L}}\p{{N}}\p{{M}}\u200c\u200d]--{UNSPACED}]+"
    r"|(?=\p{So})\X",
    regex.V1,
)
UNFOLDED = regex.compile(r"([\p{dt=Super}\p{dt=Sub}\p{dt=Fraction}\p{dt=Circle}]+)")  # no digits of the number beside
IGNORED = regex.compile(r"[[\p{Cf}\p{Variation_Selector}]--[\u200c\u200d]]", regex.V1)  # never seen
SHAPES = str.maketrans(dict.fromkeys("\u2018\u2019\u02bc", "'") | dict.fromkeys("\u201c\u201d", '"'))
SHAPES |= str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2212", "-"))
GROUPS = r"\p{Nd}{1,3}(?:,\p{Nd}{2,3})*,\p{Nd}{3}(?!\p{Nd}|,\p{Nd})"  # a number's, as in 1,234,567 or 12,34,567
LISTED = regex.compile(rf"(?<![\p{{Nd}}.,])(?!{GROUPS})\p{{Nd}}+(?:,\p{{Nd}}+){{2,}}(?!\.\p{{Nd}})")
GROUPED = regex.compile(r"(?<=\p{Nd})['\u2019\u00a0\u2009\u202f](?=\p{Nd}{3}(?!\p{Nd}))")
# Before a number's first digit: neither a digit with a point or comma, nor a minus or point that follows no word.
STARTS_NUMBER = r"""(?<!\p{Nd}[.,])(?<!(?<![\p{L}\p{N}\p{M}\p{Pe}\p{Pf}.]["']*)[.\-])"""
ENDS_NUMBER = r"(?![.,]\p{Nd})"


def fold(text: str) -> str:
    """The text as it is compared: full and half width, ligatures and letter case alike, single blanks."""
    text = GROUPED.sub(",", IGNORED.sub("", text))
    parts = UNFOLDED.split(text)
    parts[::2] = [unicodedata.normalize("NFKC", part) for part in parts[::2]]
    folded = unicodedata.normalize("NFC", "".join(parts).casefold()).translate(SHAPES)
    return " ".join(LISTED.sub(lambda found: found[0].replace(",", ", "), folded).split())


def words(text: str) -> list[str]:
    """Folded runs of letters, marks and digits; characters where words are not set apart by spaces; emoji."""
    return WORDS.findall(fold(text))


def occurs(answer: str, output: str) -> bool:
    """Whether a gold answer occurs in an output as whole words.

    An end of the answer that is a character of a script without spaces, or a sign, may stand in running text; one that
    is a digit may not go on as a number, nor follow a minus sign.
    """
    gold = fold(answer)
    first, last = gold[:1], gold[-1:]
    before = rf"(?<!{LETTER}_*)" if regex.match(LETTER, first, regex.V1) else ""
    before += STARTS_NUMBER if regex.match(r"\p{Nd}", first) else ""
    after = rf"(?!_*{LETTER})" if regex.match(LETTER, last, regex.V1) else ""
    after += r"(?!\+\+|#(?![\p{L}\p{N}#]))" if regex.match(r"\p{L}", last) else ""  # C is neither C++ nor C#
    after += ENDS_NUMBER if regex.match(r"\p{Nd}", last) else ""
    whole = r"(?![\p{M}\p{GCB=SpacingMark}])"  # an accent or vowel sign that follows makes it another character
    return regex.search(f"{before}{regex.escape(gold)}{after}{whole}", fold(output), regex.V1) is not None


def share_found(answers: Sequence[str], output: str) -> float:
    """The share of the gold answers that occur in the output as whole words."""
    return sum(occurs(answer, output) for answer in answers) / len(answers)


def any_found(answers: Sequence[str], output: str) -> float:
    """1 if any gold answer occurs in the output as whole words."""
    return float(any(occurs(answer, output) for answer in answers))


def share_of_substrings(answers: Sequence[str], output: str) -> float:
    """RULER's string_match_all: the share of the references that are substrings of the output, letter case aside."""
    return sum(answer.lower() in output.lower() for answer in answers) / len(answers)


def exact(answers: Sequence[str], output: str) -> float:
    """1 if the folded output equals a folded gold answer."""
    return float(any(fold(answer) == fold(output) for answer in answers))


def rouge1_recall(answer: str, output: str) -> float:
    """The share of the answer's words found in the output, times 10: a weak score of the classic needle test."""
    gold, said = Counter(words(answer)), Counter(words(output))
    return 10 * (gold & said).total() / gold.total()


def token_overlap(answer: str, output: str) -> float:
    """The share of the answer's distinct words found in the output: the other weak score of the classic test."""
    gold = set(words(answer))
    return len(gold & set(words(output))) / len(gold)


def token_f1(answers: Sequence[str], output: str) -> float:
    """The best F1 of the output's words against a gold answer's (SQuAD's, without its article rule)."""
    return max(_f1(words(answer), words(output)) for answer in answers)


def _f1(gold: list[str], said: list[str]) -> float:
    common = (Counter(gold) & Counter(said)).total()
    return 2 * common / (len(gold) + len(said)) if common else 0.0
