"""`pvcbench lm-eval`: lm-eval's own command line, with compressed caches as its model `pvcbench`."""

import importlib.util
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence

from pvcbench.cli.exits import Parser
from pvcbench.config.extras import pip_install
from pvcbench.errors import UserError

MORE = """
arguments of --model_args: method (required), budget, decode, refeed_last, seed, device, pretrained (default: smollm2),
and those of lm-eval's own hf model

example:
  pvcbench lm-eval run --model pvcbench --model_args pretrained=ORG/NAME,method=h2o,budget=0.25 --tasks piqa
"""


def parser(**options) -> Parser:
    """What can be asked; lm-eval reads the arguments itself."""
    made = Parser(
        "pvcbench lm-eval",
        description="lm-eval's own command line, which knows the model `pvcbench`. All arguments are lm-eval's.",
        epilog=MORE,
        formatter_class=RawDescriptionHelpFormatter,
        **options,
    )
    made.add_argument("arguments", nargs="*", help="lm-eval's own; `pvcbench lm-eval run --help` tells them")
    return made


def parse(arguments: Sequence[str]) -> list[str]:
    """The arguments as they are; help where there are none, or nothing else is asked."""
    if not arguments or arguments[0] in ("-h", "--help"):
        parser().parse_args(["--help"])
    return list(arguments)


def run(asked: list[str]) -> int:
    """Runs lm-eval."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(f"this needs the lm-eval package: {pip_install('eval')}")
    from lm_eval.__main__ import cli_evaluate

    import pvcbench.evaluation.lm_eval_model  # noqa: F401  registers the model

    sys.argv = [sys.argv[0], *asked]
    cli_evaluate()
    return 0
