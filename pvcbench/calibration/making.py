"""Computes one recipe's tensors for a model and writes them, with all that they depend on in the header."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from pvcbench.calibration.corpus import Corpus
from pvcbench.calibration.recipes import RECIPES, ExpectedAttention, QFilters
from pvcbench.engine import engine as engines
from pvcbench.errors import UserError
from pvcbench.evaluation.progress import Meter
from pvcbench.models.loaded import LoadedModel, tokenizer_id
from pvcbench.version import VERSION

FORMAT = 1  # raised when what the header says changes


def check_place(path: Path) -> None:
    """Refuses, before anything is computed, a file that cannot be written or is there already."""
    if path.suffix != ".safetensors":
        raise UserError(f"--out must name a .safetensors file, not {path}")
    if path.exists():
        raise UserError(f"{path} is there already: choose another file with --out, or delete it")
    if not path.resolve().parent.is_dir():
        raise UserError(f"there is no folder {path.resolve().parent}: make it, or choose another file with --out")


def make(loaded: LoadedModel, recipe: QFilters | ExpectedAttention, corpus: Corpus) -> dict[str, Tensor]:
    """The tensors of a recipe, with progress on stderr."""
    texts = recipe.coded(corpus, loaded.tokenizer)
    longest = max(map(len, texts))
    if loaded.longest is not None and longest > loaded.longest:
        raise UserError(
            f"a text of {longest} tokens is longer than the model's {loaded.longest}: lower --tokens or --characters"
        )
    with Meter(len(texts), what="texts") as meter:
        return recipe.computed(loaded, texts, lambda: meter.finish(1))


def header(loaded: LoadedModel, recipe: QFilters | ExpectedAttention, corpus: Corpus) -> dict[str, str]:
    """What the numbers depend on, as the texts that a safetensors header holds."""
    kind = next(name for name, made in RECIPES.items() if isinstance(recipe, made))
    return {
        "pvcbench": VERSION,
        "format": str(FORMAT),
        "kind": kind,
        "model": str(loaded.identity.get("name")),
        "weights": str(loaded.identity.get("weights")),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "tokenizer": tokenizer_id(loaded.tokenizer),
        "engine": str(engines.VERSION),
        "corpus": corpus.name,
        "corpus_sha256": corpus.sha256,
        "recipe": json.dumps(asdict(recipe), sort_keys=True),
    }


def write(path: Path, tensors: Mapping[str, Tensor], told: Mapping[str, str]) -> None:
    """Writes the file whole or not at all."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        unfinished.write_bytes(save(dict(tensors), metadata=dict(told)))
        unfinished.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another file with --out") from error
    finally:
        unfinished.unlink(missing_ok=True)
