"""`pvcbench check method NAME`: holds a method to the exactness properties and says in one line what is wrong."""

import sys
import time
from argparse import Namespace, RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Mapping, Sequence

from pvcbench.cli.exits import Parser, printing
from pvcbench.errors import UserError

MORE = """
examples:
  pvcbench check method h2o
  pvcbench check method mine methods.mine.newest=0.5 --config-dir .

The method is run on tiny models with random weights: grouped queries, a KV head for each query head, and sliding
layers, in float64 and bfloat16. "Looks at the future" means that what is kept depends on a token that comes after the
compressed ones: a method may see the whole prompt that is compressed, but neither the question, where
query_aware=false, nor the answer, nor the rest of a document that is streamed. One that declares `reads` is exempt.

exit codes: 0 the method is right; 1 it is wrong; 2 there is no such method, or it cannot be built
"""


def parser(**options) -> Parser:
    """What can be asked."""
    made = Parser(
        "pvcbench check",
        description="Holds a method, ours or your own, to the exactness properties, in less than a minute.",
        epilog=MORE,
        formatter_class=RawDescriptionHelpFormatter,
        **options,
    )
    made.add_argument("kind", choices=("method",), help="what is checked")
    made.add_argument("name", metavar="NAME", help="the method, as `pvcbench list` names it")
    made.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="settings of the method, such as methods.NAME.ratio=0.3"
    )
    made.add_argument(
        "--config-dir",
        "-cd",
        action="append",
        default=[],
        metavar="DIR",
        help="a folder of your own YAML files and modules, as for `pvcbench run`",
    )
    return made


def run(asked: Namespace) -> int:
    """Prints failures and the table of all checks; returns 0 or 1."""
    started = time.monotonic()
    node = chosen(asked.name, asked.overrides, asked.config_dir)
    from pvcbench.config import building

    method = building.build_methods({asked.name: node})[asked.name]
    method.validate(f"methods.{asked.name}")
    import torch

    torch.set_num_threads(1)  # for matrices this small more of them only wait for each other
    from pvcbench.checks import check_method

    outcomes = check_method(method)
    for outcome in outcomes:
        if outcome.failed:
            print(f"pvcbench: {asked.name}: {outcome.line}", file=sys.stderr)
    with printing():
        show(asked.name, outcomes, time.monotonic() - started)
    return 1 if any(outcome.failed for outcome in outcomes) else 0


def chosen(name: str, overrides: Sequence[str], folders: Sequence[str]) -> Mapping:
    """The configuration of the method."""
    from pvcbench.config import compose as configuration

    for one in overrides:
        if not one.lstrip("+~").startswith(f"methods.{name}."):
            raise UserError(f"what is {one!r}? check takes settings of the method alone, methods.{name}.KEY=VALUE")
    config = configuration.composed([f"method={name}", *overrides], folders)
    if name not in config.methods:
        raise UserError(f"method={name} gives no methods.{name}: its YAML must begin with # @package methods.{name}")
    return config.methods[name]


def show(name: str, outcomes: Sequence, seconds: float) -> None:
    """The table, and one line that sums it up."""
    width = max(len(outcome.name) for outcome in outcomes)
    for outcome in outcomes:
        reason = f"  {outcome.line}" if outcome.line and not outcome.failed else ""
        print(f"{outcome.name:<{width}}  {outcome.result}{reason}")
    counts = Counter(outcome.result for outcome in outcomes)
    verdict = "is wrong" if counts["failed"] else "is right"
    print(f"{name} {verdict}: {', '.join(f'{count} {result}' for result, count in counts.items())} ({seconds:.0f} s)")
