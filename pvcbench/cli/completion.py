"""`pvcbench completion`: what a shell needs to complete the commands and their options."""

from argparse import Namespace, RawDescriptionHelpFormatter

import shtab

from pvcbench.cli.exits import Parser, printing

MORE = """
examples:
  pvcbench completion bash >> ~/.bash_completion
  pvcbench completion zsh > ~/.zsh/completions/_pvcbench
"""


def parser(**options) -> Parser:
    """What can be asked."""
    made = Parser(
        "pvcbench completion",
        description="Prints what a shell needs to complete these commands.",
        epilog=MORE,
        formatter_class=RawDescriptionHelpFormatter,
        **options,
    )
    made.add_argument("shell", choices=shtab.SUPPORTED_SHELLS)
    return made


def run(asked: Namespace) -> int:
    """Prints it."""
    from pvcbench.cli.main import whole

    with printing():
        print(shtab.complete(whole(), asked.shell))
    return 0
