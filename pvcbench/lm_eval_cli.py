"""lm-eval's own command line with the model `pvcbench` known to it.

python -m pvcbench.lm_eval_cli run --model pvcbench --model_args pretrained=ORG/NAME,method=h2o,budget=0.25 --tasks piqa
"""

import importlib.util
import sys

from pvcbench.errors import UserError
from pvcbench.extras import pip_install


def main() -> int:
    """Runs lm-eval on the command line's arguments; returns 0, or 2 for a user's error."""
    try:
        if importlib.util.find_spec("lm_eval") is None:
            raise UserError(f"this needs the lm-eval package: {pip_install('eval')}")
        from lm_eval.__main__ import cli_evaluate

        import pvcbench.lm_eval_model  # noqa: F401  registers the model

        cli_evaluate()
    except UserError as error:
        print(f"pvcbench: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
