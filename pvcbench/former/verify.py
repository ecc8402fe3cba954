"""`python -m pvcbench.verify`, which is now `pvcbench verify`."""

import sys

from pvcbench.cli.main import former

if __name__ == "__main__":
    sys.exit(former("verify", "verify"))
