"""pvcbench: what a language model still knows when its KV cache is cut.

import pvcbench
table = pvcbench.evaluate("smollm2", "needle", ["pvc", "h2o"], budgets=[0.25, 0.5], limit=10)
"""

__version__ = "0.1.0"


def evaluate(model="smollm2", task="needle", methods=("pvc",), budgets=None, **settings):
    """Runs a benchmark and returns its summary, one line per method and budget, as a pandas DataFrame.

    `model` and `task` are names of configurations or objects (a `LoadedModel`, a `Task`); `methods` is a list of names
    or a dictionary of names to `Method` objects. Other settings are those of the command line, with dots as double
    underscores: `seed=1`, `limit=10`, `results="out"`,
    `task__lengths=[2048]`, `model__name="ORG/NAME"`, `wandb__mode="disabled"`.
    The full cache is always added; where it answers next to nothing a warning says so.
    Raises `pvcbench.errors.UserError` with one line that says what to do.
    """
    import warnings
    from collections.abc import Mapping

    from pvcbench import cautions, config, runner

    chosen, objects = [], {}
    for group, value in (("model", model), ("task", task)):
        if isinstance(value, str):
            chosen.append(f"{group}={value}")
        else:
            objects[group] = value
    if isinstance(methods, Mapping):
        objects["methods"] = dict(methods)
        if not any(method.reference for method in objects["methods"].values()):
            objects["methods"] |= config.build_methods(config.composed(["method=full"]).methods)
    else:
        chosen.append(f"method=[{','.join([methods] if isinstance(methods, str) else methods)}]")
    values = dict(settings) if budgets is None else {"budgets": list(budgets), **settings}
    chosen += [f"{name.replace('__', '.')}={config.written(value)}" for name, value in values.items()]
    result = runner.run(config.composed(chosen), **objects)
    for line in cautions.loud(result.rows):
        warnings.warn(line, stacklevel=2)
    return result.summary
