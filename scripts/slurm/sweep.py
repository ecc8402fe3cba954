"""Sweeps on a SLURM cluster: python scripts/slurm/sweep.py submit|status|run ... (the same as `pvcbench sweep`)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pvcbench.cli import exits
from pvcbench.cli.main import main

if __name__ == "__main__":
    sys.exit(exits.program(lambda: main(["sweep", *sys.argv[1:]])))
