"""Data sets that are made here: rows that are pure functions of (seed, index), by generators with settings."""

import json
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, ValidationError

from pvcbench.config.extras import pip_install
from pvcbench.errors import UserError
from pvcbench.tasks.base import sample_rng
from pvcbench.tasks.qa.description import Description
from pvcbench.tasks.qa.finding import json_of
from pvcbench.tasks.qa.generator import Generator
from pvcbench.tasks.qa.nolima import NoLiMa

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."


class Pairs(Generator):
    """Lost in the middle: pairs of UUIDs, one a line; the pair that is asked for stands at each position in turn.

    With `questions` the pairs are left as they are made, and so many of one text are asked for, spread evenly.
    """

    pairs: int = Field(140, ge=2, description="a whole number, 2 or more")
    positions: list[int] | None = Field(None, description="a list of whole numbers from 0; null: five spread evenly")
    samples: int = Field(100, ge=1, description="a whole number, 1 or more: samples of each position")
    questions: int | None = Field(None, ge=1, description="a whole number: questions on one text; null: one")

    @cached_property
    def places(self) -> list[int]:
        """The positions of the pair that is asked for."""
        if self.questions is not None:
            if self.positions is not None or self.questions > self.pairs:
                raise UserError(
                    f"settings.questions: wanted at most {self.pairs}, the pairs of a text, and no positions"
                )
            return [(2 * number + 1) * self.pairs // (2 * self.questions) for number in range(self.questions)]
        if self.positions is None:
            return sorted({round(share * (self.pairs - 1) / 4) for share in range(5)})
        if not self.positions or not all(0 <= one < self.pairs for one in self.positions):
            raise UserError(f"settings.positions: found {self.positions}, wanted numbers from 0 to {self.pairs - 1}")
        return self.positions

    @property
    def size(self) -> int:
        return self.samples * len(self.places)

    def row(self, seed: int, index: int) -> dict:
        repeat, place = divmod(index, len(self.places))
        rng = sample_rng(seed, repeat)
        pairs = [(_uuid(rng), _uuid(rng)) for _ in range(self.pairs)]
        position = self.places[place]
        gold = pairs[position] if self.questions else pairs.pop(int(rng.integers(self.pairs)))
        if not self.questions:
            pairs.insert(position, gold)
        text = "{" + ",\n ".join(f'"{key}": "{value}"' for key, value in pairs) + "}"
        return {
            "id": f"{seed}-{repeat}-{position}",
            "context": text,
            "key": gold[0],
            "value": gold[1],
            "position": f"pair {position}",
            "repeat": f"{seed}-{repeat}",
            "needle": f'"{gold[0]}": "{gold[1]}"',
        }


def _uuid(rng: np.random.Generator) -> str:
    digits = rng.bytes(16).hex()
    return (
        f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{'89ab'[int(digits[16], 16) % 4]}{digits[17:20]}-{digits[20:]}"
    )


class Landmark(Generator):
    """Landmark attention's pass key: a number from 1 to 49,999 in so many characters of noise, cut anywhere."""

    lengths: list[int] = Field([1000, 5000, 10000, 20000, 38000], min_length=1, description="a list of whole numbers")
    samples: int = Field(50, ge=1, description="a whole number, 1 or more: samples of each length")

    @property
    def size(self) -> int:
        return self.samples * len(self.lengths)

    def row(self, seed: int, index: int) -> dict:
        repeat, place = divmod(index, len(self.lengths))
        length, rng = self.lengths[place], sample_rng(seed, index)
        before, key = int(rng.integers(length)) if length else 0, int(rng.integers(1, 50000))
        noise = " ".join([NOISE] * (length // len(NOISE) + 1))
        line = f"The pass key is {key}. Remember it. {key} is the pass key."
        context = "\n".join([noise[:before], line, noise[: length - before]])
        name = {"id": f"{seed}-{length}-{repeat}", "length": f"{length} characters", "needle": line}
        return name | {"context": context, "value": str(key)}


class Hidden(Generator):
    """InfiniteBench's pass key and number string: five digits, or five of which some repeat, between lines of noise."""

    kind: str = Field("passkey", pattern="^(passkey|number_string)$", description="passkey or number_string")
    lines: int = Field(5220, ge=1, description="a whole number: lines of noise")
    step: int = Field(90, ge=1, description="a whole number: lines between two depths")
    samples: int = Field(10, ge=1, description="a whole number, 1 or more: samples of each depth")

    @property
    def size(self) -> int:
        return self.samples * len(range(0, self.lines + 1, self.step))

    def row(self, seed: int, index: int) -> dict:
        repeat, place = divmod(index, self.size // self.samples)
        rng, before = sample_rng(seed, index), place * self.step
        digits = [str(rng.integers(10)) for _ in range(5)]
        if self.kind == "number_string":
            for count in range(5):
                position = int(rng.integers(5 + count))
                digits.insert(position, digits[position])
        key = "".join(digits)
        what, name = (
            ("pass key", "pass key") if self.kind == "passkey" else ("sequence of digits", "sequence of digits")
        )
        line = f"The {what} is {key}. Remember it. {key} is the {name}."
        context = f"{NOISE}\n" * before + f"{line}\n" + f"{NOISE}\n" * (self.lines - before)
        depth = round(100 * before / self.lines)
        known = {"id": f"{seed}-{before}-{repeat}", "depth": f"{depth}%", "needle": line}
        return known | {"context": context, "input": f"What is the {what}?", "value": key}


class ReasoningGym(Generator):
    """Problems of the package `reasoning-gym`, by the name of one of its data sets."""

    dataset: str = Field("chain_sum", description="the name of a data set of reasoning-gym")
    samples: int = Field(100, ge=1, description="a whole number, 1 or more")
    options: dict[str, Any] = Field({}, description="a mapping of that data set's own settings")

    @property
    def size(self) -> int:
        return self.samples

    def row(self, seed: int, index: int) -> dict:
        state = int(np.random.SeedSequence([seed]).generate_state(1)[0]) // 2
        row = _gym(self.dataset, self.samples, state, json.dumps(self.options))[index]
        return {"id": f"{seed}-{index}", "question": row["question"], "answer": row["answer"], "dataset": self.dataset}

    def validate_data(self, folder: Path | None) -> str:
        if find_spec("reasoning_gym") is None:
            raise UserError(f"generator reasoning_gym needs reasoning-gym: {pip_install('reasoning')}")
        self.row(0, 0)
        from importlib.metadata import version

        return f"reasoning-gym {version('reasoning-gym')}"


@cache
def _gym(name: str, size: int, seed: int, options: str):
    import reasoning_gym

    try:
        return reasoning_gym.create_dataset(name, size=size, seed=seed, **json.loads(options))
    except (ValueError, TypeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"reasoning-gym cannot make {name} with {options}: {reason}") from error


GENERATORS = {
    "pairs": Pairs,
    "landmark": Landmark,
    "hidden": Hidden,
    "reasoning_gym": ReasoningGym,
    "nolima": NoLiMa,
}


def generator_of(one: Description, own: dict[str, Any]) -> Generator:
    """The generator that a description names, with the user's own settings over the description's."""
    name = one.source.generator
    if name not in GENERATORS:
        raise UserError(f"{one.name}: source.generator: found {json_of(name)}, wanted one of {', '.join(GENERATORS)}")
    try:
        return GENERATORS[name](**{**one.source.settings, **own})
    except ValidationError as error:
        told = []
        for fault in error.errors(include_url=False):
            key = str(fault["loc"][0])
            fields = {field: known for field, known in GENERATORS[name].model_fields.items() if field != "version"}
            wanted = fields[key].description if key in fields else f"one of {', '.join(fields)}"
            told.append(f"task.settings.{key}: found {json_of(fault['input'])}, wanted {wanted}")
        raise UserError("\n".join(told)) from error
