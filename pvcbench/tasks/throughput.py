"""Speed and memory: random prompts of given lengths in batches of given sizes, read and continued greedily.

What tokens say does not matter here: no token ends an answer, and every prompt of a batch is as long as the others.
A batch may also be `largest`: as many prompts as fit into memory, each cell its own number.
"""

from collections.abc import Sequence

import numpy as np

from pvcbench.errors import UserError
from pvcbench.tasks.base import Sample, Task, sample_rng
from pvcbench.tasks.prompts import Prompt

LARGEST = "largest"
GIB = 2**30


class Throughput(Task):
    """One sample per batch, prompt length and number of new tokens; the score is decoded tokens per second."""

    name, kind, version, primary, has_question = "throughput", "measure", 1, "decode_tokens_per_s", False
    shorten = "lower task.prompts or task.new_tokens"

    def __init__(
        self,
        batches: Sequence[int | str] = (1,),
        prompts: Sequence[int] = (512,),
        new_tokens: Sequence[int] = (256,),
        repeats: int = 3,
        memory_gib: float | None = None,
    ):
        sizes = {"batches": (batches, 1, LARGEST), "prompts": (prompts, 1, None), "new_tokens": (new_tokens, 2, None)}
        for name, (values, least, word) in sizes.items():
            if isinstance(values, str) or not isinstance(values, Sequence) or not values:
                raise UserError(f"task.{name} must be a list such as [{32 if word else 512}], not {values!r}")
            if not all(_whole(value, least) or (word and value == word) for value in values):
                extra = f", or the word {word}" if word else ""
                raise UserError(f"task.{name} holds whole numbers of {least} or more{extra}: not {list(values)}")
        if not _whole(repeats, 1):
            raise UserError(f"task.repeats must be a whole number, 1 or more, not {repeats!r}")
        real = isinstance(memory_gib, int | float) and not isinstance(memory_gib, bool)
        if memory_gib is not None and not (real and 0 < memory_gib < float("inf")):
            raise UserError(f"task.memory_gib must be null or a number above 0, not {memory_gib!r}")
        self.batches, self.prompts, self.new_tokens = list(batches), list(prompts), list(new_tokens)
        self.repeats, self.memory_gib = repeats, memory_gib

    @property
    def memory(self) -> int | None:
        """Bytes that the process may hold while a largest batch runs, weights included; None: the device's."""
        return None if self.memory_gib is None else int(self.memory_gib * GIB)

    def check_device(self, device: str) -> None:
        """Only a GPU knows how much memory it has for us alone."""
        if LARGEST in self.batches and self.memory is None and not device.startswith("cuda"):
            raise UserError(
                "the largest batch on this device: set task.memory_gib to what the process may hold, in GiB"
            )

    def _order(self) -> list[tuple[int | str, int, int]]:
        every = [(batch, prompt, new) for prompt in self.prompts for new in self.new_tokens for batch in self.batches]
        return list(dict.fromkeys(every))

    def size(self, seed: int) -> int:
        return len(self._order())

    def sample(self, seed: int, index: int) -> Sample:
        batch, prompt, new = self._order()[index]
        name = batch if batch == LARGEST else f"b{batch}"
        info = {"batch": batch, "prompt": prompt, "new_tokens": new, "drawn_from": [seed, index]}
        return Sample(f"{name}-p{prompt}-n{new}", "", "", (), new, info=info)

    def rows(self, sample: Sample, batch: int) -> np.ndarray:
        """The token ids of a batch, [batch, prompt]: a function of (seed, index); more rows extend fewer."""
        tokenizer = self.prompter.tokenizer
        ordinary = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)
        return sample_rng(*sample.info["drawn_from"]).choice(ordinary, (batch, sample.info["prompt"]))

    def encode(self, sample: Sample) -> Prompt:
        """The first row of the batch, which stands for all of them."""
        ids = self.rows(sample, 1)[0].tolist()
        return Prompt(ids, len(ids))

    def protocol_record(self) -> dict:
        return {"name": self.name, "query_aware": None}


def _whole(value, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
