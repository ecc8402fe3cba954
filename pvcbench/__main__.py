"""`python -m pvcbench`."""

import sys

from pvcbench.cli.main import program

sys.exit(program())
