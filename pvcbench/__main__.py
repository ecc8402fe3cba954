"""`python -m pvcbench`."""

import sys

from pvcbench.cli import program

sys.exit(program())
