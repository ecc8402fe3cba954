"""Redraws all figures and tables from rows alone: python scripts/figures.py results/ (as `pvcbench figures` does)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pvcbench.cli import exits
from pvcbench.cli.main import main

if __name__ == "__main__":
    sys.exit(exits.program(lambda: main(["figures", *sys.argv[1:]])))
