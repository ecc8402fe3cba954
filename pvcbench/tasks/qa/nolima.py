"""NoLiMa's needles in books (arXiv:2502.05167), from its own files."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydantic import ConfigDict, Field

from pvcbench.errors import UserError
from pvcbench.tasks import files
from pvcbench.tasks.qa.generator import Generator


class NoLiMa(Generator):
    """NoLiMa: needles without words of their questions, at a line's end of a book, by the model's own tokens.

    `lengths` count the haystack's tokens alone. Books count in the order of their names; the original takes the
    order of the file system, which draws other names for the same test.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=False)
    lengths: list[int] = Field([1000], min_length=1, description="a list of whole numbers: tokens of the haystack")
    depths: int = Field(26, ge=2, description="a whole number, 2 or more")
    needles: str = Field("needlesets/needle_set.json", description="the file of needles")
    books: str = Field("haystack/rand_shuffle", description="the folder of books")

    def prepare(self, tokenizer, folder: Path | None) -> None:
        self._read(folder)
        self._tokenizer, self._coded = tokenizer, {}

    def _read(self, folder: Path | None) -> None:
        if folder is None:
            raise UserError(
                "NoLiMa lies in files: get amodaresi/NoLiMa of the hub and name its folder with task.data_dir"
            )
        needles, books = folder / self.needles, folder / self.books
        if not needles.is_file() or not books.is_dir():
            told = f"{self.needles} and the folder {self.books}"
            raise UserError(f"{folder} has no {told}: get amodaresi/NoLiMa of the hub and name it with task.data_dir")
        self._books = sorted(books.glob("*.txt"))
        if not self._books:
            raise UserError(f"{books} holds no .txt file")
        try:
            self._tests = list(_tests(json.loads(files.read(needles, "task.data_dir"))))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{needles} is no needle set of NoLiMa ({type(error).__name__}: {error})") from error

    def validate_data(self, folder: Path | None) -> str:
        self._read(folder)
        parts = [folder / self.needles, *self._books]
        return hashlib.sha256(b"".join(hashlib.sha256(one.read_bytes()).digest() for one in parts)).hexdigest()

    @property
    def size(self) -> int:
        return len(self._books) * len(self._tests) * len(self.lengths) * self.depths

    def row(self, seed: int, index: int) -> dict:
        rest, depth = divmod(index, self.depths)
        rest, length = divmod(rest, len(self.lengths))
        number, test = divmod(rest, len(self._tests))
        length, test = self.lengths[length], self._tests[test]
        draws = np.random.RandomState(42 + seed + test["number"] + number)
        needle, question, gold = test["needle"], test["question"], test["gold"]
        if "{CHAR}" in needle:
            names = [str(draws.choice(test["names"])) for _ in range(depth + 1)]
            needle, question, gold = (
                needle.replace("{CHAR}", names[-1]),
                question.replace("{CHAR}", names[-1]),
                names[-1:],
            )
        share = depth / (self.depths - 1)
        return {
            "id": f"{self._books[number].stem}-{test['name']}-{length}-{depth}-{seed}",
            "context": self._placed(self._books[number], needle, length, share),
            "question": question,
            "answers": gold,
            "needle": needle,
            "length": f"{length} tokens",
            "test": f"{self._books[number].stem}-{test['name']}",
        }

    def _placed(self, book: Path, needle: str, length: int, depth: float) -> str:
        """The book's text with the needle in the place of a line's end at about this depth."""
        if book not in self._coded:
            ids = self._tokenizer(files.read(book, "task.data_dir"), add_special_tokens=False)["input_ids"]
            ends = [0, *(place for place, one in enumerate(ids) if "\n" in self._tokenizer.decode([one]))]
            self._coded[book] = ids, np.array(ends)
        ids, ends = self._coded[book]
        far = np.where(ends / (length + 1) >= depth, ends / (length + 1) - depth, np.inf)
        place = int(ends[int(np.argmin(far))])
        start = place - round(length * depth)
        if not np.isfinite(far.min()) or start < 0 or start + length > len(ids):
            raise UserError(f"settings.lengths: {length} tokens are more than {book.name} can hold a needle in")
        before = self._tokenizer.decode(ids[start : place + 1])
        before = before[: max(before.rfind("\n"), 0)]
        return f"{before} {needle}\n{self._tokenizer.decode(ids[place + 1 : start + length])}"


def _tests(sets: list[dict]) -> Iterator[dict]:
    """The tests of a needle set: what is hidden, what is asked, and who may be named."""
    for one in sets:
        for kind, asked in one["questions"].items():
            for name, test in one["tests"].items():
                needle, question = one["needle"], asked
                for number, argument in enumerate(test["input_args"], start=1):
                    needle = needle.replace(f"{{{number}}}", argument)
                    question = question.replace(f"{{{number}}}", argument)
                if "distractors" in one:
                    raise ValueError("needle sets with distractors are not read")
                known = {"needle": needle, "question": question, "names": one.get("character_set", [])}
                label = {"name": f"{one['id']}_{name}_{kind}", "number": int(one["id"][:4])}
                yield known | label | {"gold": test.get("gold_answers", [])}
