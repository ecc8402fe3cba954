"""`python -m pvcbench.lm_eval_cli`, which is now `pvcbench lm-eval`."""

import sys

from pvcbench.cli.main import former

if __name__ == "__main__":
    sys.exit(former("lm_eval_cli", "lm-eval"))
