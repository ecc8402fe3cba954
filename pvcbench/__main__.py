"""`python -m pvcbench`."""

import sys

from pvcbench.cli import main

sys.exit(main())
