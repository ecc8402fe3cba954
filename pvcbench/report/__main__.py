"""`python -m pvcbench.report`, which is now `pvcbench report`."""

import sys

from pvcbench.cli.main import former

if __name__ == "__main__":
    sys.exit(former("report", "report"))
