"""Where sentences end in a text that is given as words: the places at which RULER hides needles in essays.

RULER asks nltk's Punkt model, whose tables must be downloaded. Here a rule decides, without any data: a sentence ends
after a word whose last signs are `.`, `?` or `!`, closing quotation marks and brackets aside, unless the word ends in
a point and is an abbreviation of the list, a single letter such as an initial (but `I.` ends one), letters with points
between them such as `U.S.`, or the next word starts with a small letter.
"""

import re
from collections.abc import Sequence

END = re.compile(r"[.?!]+[\"')\]}*_\u201d\u2019]*$")
AROUND = "\"'()[]{}*_\u201c\u201d\u2018\u2019"
INITIALS = re.compile(r"[a-z](\.[a-z])*")
ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof st vs etc jr sr inc co corp ltd cf al fig vol pp approx ca gen rep sen gov dept".split()
)


def ends_sentence(word: str, following: str) -> bool:
    """Whether a sentence ends after a word, by the word and the one that follows."""
    if not END.search(word):
        return False
    core = word.strip(AROUND)
    if not core.endswith("."):
        return True
    core = core.rstrip(".").lower()
    abbreviated = core in ABBREVIATIONS or (core != "i" and INITIALS.fullmatch(core))
    return not abbreviated and not following[:1].islower()


def sentence_ends(words: Sequence[str]) -> list[int]:
    """How many words lie before each end of a sentence, the last word's aside."""
    return [place for place in range(1, len(words)) if ends_sentence(words[place - 1], words[place])]
