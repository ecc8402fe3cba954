"""`python -m pvcbench.rescore`, which is now `pvcbench rescore`."""

import sys

from pvcbench.cli.main import former

if __name__ == "__main__":
    sys.exit(former("rescore", "rescore"))
