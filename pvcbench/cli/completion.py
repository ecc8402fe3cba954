"""`pvcbench completion`: prints a completion script for a shell."""

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
        description="Prints a completion script; a new shell that reads it completes these commands.",
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
