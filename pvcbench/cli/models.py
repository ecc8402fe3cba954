"""`pvcbench models [NAME]`: every architecture of the installed transformers, or what is known of one."""

import json
import os
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pvcbench.architectures import support
from pvcbench.architectures.support import REFUSED, RUNS, UNKNOWN, Family, Support
from pvcbench.cli.exits import Parser, printing
from pvcbench.errors import UserError

LARGEST = 500_000_000  # weights that a folder's model may have to be tried as it is configured


def parser(**options) -> Parser:
    """What can be asked."""
    made = Parser(
        "pvcbench models",
        description="Lists every architecture of the installed transformers, or one: does it run, and if not, why.",
        epilog="example: pvcbench models gpt_oss --try",
        **options,
    )
    made.add_argument("name", nargs="?", help="a model type or class of transformers, or a folder with a config.json")
    made.add_argument(
        "--try", dest="tried", action="store_true", help="try it now, on a tiny model with random weights"
    )
    made.add_argument("--json", action="store_true", help="print JSON")
    return made


def run(asked: Namespace) -> int:
    """Prints the list, one architecture, or its trial."""
    if asked.name is None:
        if asked.tried:
            raise UserError("--try needs a NAME: scripts/model_support.py --measure tries all of them")
        with printing():
            show_all(support.current(), asked.json)
        return 0
    if is_folder(asked.name):
        chosen = of_folder(Path(asked.name), asked.tried)
    else:
        chosen = support.found(support.current(), asked.name)
        chosen = [trial_of(family.name) for family in chosen] if asked.tried else chosen
    with printing():
        show(chosen, asked.json, asked.tried)
    return 0


def is_folder(name: str) -> bool:
    """Whether a name is a folder's: one that is there, or that can only be a path."""
    if os.path.isdir(name):
        return True
    if "/" in name:
        raise UserError(f"there is no folder {name!r}: name one with a config.json, or a model type of transformers")
    return False


def own_methods() -> dict:
    """Every method of conf/method that runs as it stands."""
    from pvcbench.config import building
    from pvcbench.config import compose as config

    names = config.complete("method")
    return building.build_methods(config.composed([f"method=[{','.join(names)}]"]).methods)


def trial_of(name: str) -> Family:
    """The trial of a family's tiny model, now."""
    import torch

    from pvcbench.architectures import trial

    torch.set_num_threads(1)
    return trial.run(name, own_methods())


def of_folder(folder: Path, tried: bool) -> list[Family]:
    """What is known of the type of a folder's model, or the trial of its configuration with random weights."""
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json: name the folder of a model")
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"cannot read {folder / 'config.json'}: {' '.join(str(error).split())[:200]}") from error
    known = support.found(support.current(), config.model_type)[:1]
    if not tried:
        return known
    return [trial_of_config(folder, config)]


def trial_of_config(folder: Path, config) -> Family:
    """The trial of a configuration as it stands; refuses one that is too large to be built at random."""
    import torch
    from transformers import AutoModelForCausalLM

    from pvcbench.architectures import families, trial

    torch.set_num_threads(1)
    with torch.device("meta"):
        weights = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
    if weights > LARGEST:
        raise UserError(
            f"the model of {folder} has {weights:,} weights, too many to be tried at random: "
            f"`pvcbench models {config.model_type} --try` tries a tiny one of its type"
        )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    families.widen(model)
    return replace(trial.of_model(folder.name, model, own_methods()), name=folder.name)


def show_all(known: Support, as_json: bool) -> None:
    """The list: what runs with the layers that evict, what does not with the reason."""
    if as_json:
        print(json.dumps([told(family) for family in known.families.values()]))
        return
    table = Table(title=f"transformers {known.transformers}", title_justify="left")
    for column in ("model type", "verdict", "layers that evict", "methods refused, or why"):
        table.add_column(column, overflow="fold")
    for name, family in sorted(known.families.items()):
        layers = "" if family.evicted is None else f"{family.evicted} of {family.layers}"
        table.add_row(name, family.verdict, layers, family.reason or ", ".join(family.refused))
    Console().print(table)
    found = known.counts
    print(f"{found[RUNS]} run, {found[REFUSED]} are refused, {found[UNKNOWN]} are not known. {dated(known)}")


def dated(known: Support) -> str:
    """Which version was tried, where it is another than the one here."""
    here = support.installed()
    if here == known.transformers:
        return "Layers are those of the tiny models that were tried."
    return f"Tried with transformers {known.transformers}, and {here} is installed: NAME --try tries one here."


def told(family: Family) -> dict:
    """A family as JSON tells it."""
    return asdict(family) | {"layers": family.layers}


def show(chosen: Sequence[Family], as_json: bool, tried: bool) -> None:
    """What is known of some families, each in a few lines."""
    if as_json:
        print(json.dumps([told(family) for family in chosen]))
        return
    for family in chosen:
        print(f"{family.name} ({family.model}): {family.verdict}" + (f": {family.reason}" if family.reason else ""))
        if family.verdict != RUNS:
            continue
        kinds = ", ".join(f"{count} {kind}" for kind, count in family.kinds.items())
        print(f"  {family.evicted} of the {family.layers} layers that were tried evict ({kinds})")
        if family.error is not None:
            same = "the same" if family.generated else "other"
            print(
                f"  largest error {family.error:.0e} of the logits' range ({family.dtype}); {same} tokens as generate"
            )
        if family.chunked is False:
            print("  its prompts cannot be read in chunks")
        for method, reason in family.refused.items():
            print(f"  refused: {method}: {reason}")
        print("" if family.refused else "  every method runs\n", end="")
    if not tried and support.installed() != support.load().transformers:
        print(dated(support.load()))
