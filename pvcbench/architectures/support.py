"""What is known of each architecture of transformers: whether it runs, and if not why, as `support.json` keeps it.

`scripts/model_support.py` writes that file: it tries each architecture's tiny model (`architectures/trial.py`).
"""

import difflib
import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

from pvcbench.errors import UserError

FILE = Path(__file__).with_name("support.json")
RUNS, REFUSED, UNKNOWN = "runs", "refused", "not known"


@dataclass(frozen=True)
class Family:
    """What a trial of an architecture's tiny model came to; `name` is its model type, or a variant after a colon."""

    name: str
    model: str  # transformers' class
    verdict: str
    reason: str | None = None  # why it is refused, or not known
    kinds: dict[str, int] = field(default_factory=dict)  # layers of the tiny model by kind
    evicted: int | None = None  # of these layers
    refused: dict[str, str] = field(default_factory=dict)  # methods that do not run on it, and why
    error: float | None = None  # largest difference from the unmodified model's logits, of their range
    dtype: str | None = None  # that `error` was computed in
    chunked: bool | None = None  # whether its prompts can be read in chunks
    generated: bool | None = None  # whether the full cache's greedy tokens are those of `generate`

    @property
    def layers(self) -> int:
        """Layers of the tiny model."""
        return sum(self.kinds.values())


@dataclass(frozen=True)
class Support:
    """All that is known, and the versions it was found with."""

    transformers: str
    engine: int
    methods: list[str]  # that were tried
    families: dict[str, Family]
    before: list[str] = field(default_factory=list)  # the model types that ran before the engine's last extension

    @property
    def types(self) -> dict[str, Family]:
        """The families that transformers has, without their variants."""
        return {name: family for name, family in self.families.items() if ":" not in name}

    @property
    def counts(self) -> Counter:
        """How many model types come to each verdict."""
        return Counter(family.verdict for family in self.types.values())


def load(path: Path = FILE) -> Support:
    """What the file says."""
    known = json.loads(path.read_text(encoding="utf-8"))
    families = {name: Family(name, **rest) for name, rest in known.pop("families").items()}
    return Support(**known, families=families)


def save(support: Support, path: Path = FILE) -> None:
    """Writes the file, one line a family."""
    known = asdict(support)
    families = known.pop("families")
    lines = []
    for name, family in sorted(families.items()):
        told = {key: value for key, value in family.items() if key != "name" and value not in (None, {})}
        lines.append(f"  {json.dumps(name)}: {json.dumps(told)}")
    head = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in known.items()]
    text = ",\n".join([*head, '"families": {\n' + ",\n".join(lines) + "\n}"])
    path.write_text("{\n" + text + "\n}\n", encoding="utf-8")


def installed() -> str:
    """The version of transformers here, told without importing it."""
    return metadata.version("transformers")


def architectures() -> dict[str, str]:
    """The model types that the installed transformers loads as causal language models, and their classes."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def current() -> Support:
    """What is known of the installed transformers' architectures: those that the file does not have are not known."""
    support = load()
    if support.transformers == installed():
        return support
    classes = architectures()
    reason = f"it was not tried: transformers {support.transformers} had no such architecture"
    known = {name: family for name, family in support.families.items() if name.partition(":")[0] in classes}
    new = {name: Family(name, model, UNKNOWN, reason) for name, model in classes.items() if name not in known}
    return Support(support.transformers, support.engine, support.methods, known | new, support.before)


def found(support: Support, name: str) -> list[Family]:
    """The families that a name means: a model type with its variants, a variant, or the types of a class."""
    plain = name.strip().lower().replace("-", "_")
    exact = [family for key, family in support.families.items() if key.lower().replace("-", "_") == plain]
    kind = exact[0].name if exact else None
    chosen = exact + [family for key, family in support.families.items() if kind and key.startswith(f"{kind}:")]
    chosen = chosen or [family for family in support.families.values() if family.model.lower() == name.lower()]
    if chosen:
        return chosen
    words = {key.lower(): key for key in support.families}
    words |= {family.model.lower(): family.model for family in support.families.values()}
    close = [words[one] for one in difflib.get_close_matches(name.lower(), words, n=3, cutoff=0.5)]
    advice = f"did you mean {', '.join(close)}?" if close else "`pvcbench models` lists them"
    raise UserError(f"transformers {installed()} has no causal language model {name!r}: {advice}")
