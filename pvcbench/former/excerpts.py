"""`python -m pvcbench.excerpts`, which is now `pvcbench excerpts`."""

import sys

from pvcbench.cli.main import former

if __name__ == "__main__":
    sys.exit(former("excerpts", "excerpts"))
