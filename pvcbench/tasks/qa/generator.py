"""What a generator is: rows that are pure functions of its settings, a seed and an index."""

from pathlib import Path

from pvcbench.tasks.qa.description import Part


class Generator(Part):
    """A generator's settings are its fields; `row` is a pure function of them, the seed and the index."""

    version: int = 1  # raised when rows change

    @property
    def size(self) -> int:
        """How many rows there are."""
        raise TypeError(f"{type(self).__name__} does not say how many rows it has")

    def row(self, seed: int, index: int) -> dict:
        """The row with this index."""
        raise TypeError(f"{type(self).__name__} makes no rows")

    def prepare(self, tokenizer, folder: Path | None) -> None:
        """Receives the model's tokenizer, for generators that count tokens."""

    def validate_data(self, folder: Path | None) -> str:
        """Checks what must be there and returns a hash of the files that rows are made of."""
        return ""
