"""`pvcbench conform make|check`: which published variant of a method an implementation is."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from pvcbench.cli.exits import Parser, printing
from pvcbench.errors import UserError

ABOUT = (
    "In this field one name means many methods. Twenty cases of queries, keys and values come with what every variant "
    "that pvcbench names keeps of them; run your own code on them, and it is told which variant it is. "
    "docs/guide/conformance.md has an example."
)


def parser(**options) -> Parser:
    """What can be asked."""
    example = "example: pvcbench conform check mine.safetensors --method snapkv"
    made = Parser("pvcbench conform", description=ABOUT, epilog=example, **options)
    commands = made.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (add, _, about, shown) in COMMANDS.items():
        epilog = f"example: pvcbench conform {shown}"
        add(commands.add_parser(name, prog=f"pvcbench conform {name}", help=about, description=about, epilog=epilog))
    return made


def run(asked: Namespace) -> int:
    """Returns 0, or 1 where an implementation is no published variant of its method."""
    return COMMANDS[asked.command][1](asked)


def asks_make(one: Parser) -> None:
    """The arguments of `make`."""
    one.add_argument("--out", required=True, type=Path, metavar="FILE", help="the .safetensors file to write")


def asks_check(one: Parser) -> None:
    """The arguments of `check`."""
    one.add_argument("file", type=Path, metavar="FILE", help="a safetensors file with what your code keeps")
    one.add_argument("--method", required=True, metavar="NAME", help="the method that your code is meant to be")
    one.add_argument("--golden", type=Path, metavar="FILE", help="the cases' file; without it they are made again")


def make(asked: Namespace) -> int:
    """Writes the cases."""
    out = asked.out.expanduser()
    if out.suffix != ".safetensors" or out.exists() or not out.resolve().parent.is_dir():
        raise UserError(f"--out must name a new .safetensors file in a folder that is there, not {out}")
    from pvcbench.conformance import golden

    made = computed()
    size = golden.write(made, out)
    print(f"{out}: {len({name.partition('/')[0] for name in made.tensors})} cases, {size:,} bytes")
    print(f"variants: {', '.join(made.variants)}")
    for why in dict.fromkeys(made.left_out.values()):
        print(f"left out, as {why}: {', '.join(name for name, one in made.left_out.items() if one == why)}")
    return 0


def check(asked: Namespace) -> int:
    """Says which variant an implementation is."""
    file, known = asked.file.expanduser(), asked.golden and asked.golden.expanduser()
    for path in (file, *([known] if known else [])):
        if not path.is_file():
            raise UserError(f"there is no file {path}: `pvcbench conform make` writes the cases")
    from pvcbench.conformance import golden, judging

    kept = judging.read(file)
    verdict = judging.judge(golden.read(known) if known else computed(), asked.method, kept)
    with printing():
        print("\n".join(verdict.lines))
    return 0 if verdict.right else 1


def computed():
    """The cases with what every method of ours keeps, made now."""
    import torch

    from pvcbench.conformance.cases import COUNT
    from pvcbench.conformance.golden import golden
    from pvcbench.evaluation.progress import Meter

    torch.set_num_threads(1)  # for matrices this small more of them only wait for each other
    with Meter(COUNT, what="cases") as meter:
        return golden(*own_methods(), lambda: meter.finish(1))


def own_methods() -> tuple[dict, dict[str, str]]:
    """Every method of conf/method, and why some cannot be had without a setting of the user's."""
    from pvcbench.config import building
    from pvcbench.config import compose as configuration

    made, absent, names = {}, {}, configuration.options("method")
    for name, node in configuration.composed([f"method=[{','.join(names)}]"]).methods.items():
        try:
            made |= building.build_methods({name: node})
        except UserError:
            absent[name] = "they need a setting of yours"
    return made, absent


COMMANDS = {  # how its arguments are added, what it does, what it is, an example
    "make": (
        asks_make,
        make,
        "Writes the cases, with what every variant keeps of them.",
        "make --out cases.safetensors",
    ),
    "check": (
        asks_check,
        check,
        "Says which published variant an implementation is, by what it kept of the cases.",
        "check mine.safetensors --method snapkv --golden cases.safetensors",
    ),
}


def parse(arguments: Sequence[str]) -> Namespace:
    """What is asked."""
    return parser().parse_args(list(arguments))
