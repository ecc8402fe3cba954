"""`pvcbench run`: one run, or a multirun, as Hydra's overrides ask for it."""

import gc
import os
import sys
from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence

from pvcbench.cli.exits import Parser, printing, told
from pvcbench.errors import UserError
from pvcbench.runs import signals

MORE = """
examples:
  pvcbench method=pvc task=needle
  pvcbench 'method=[pvc,h2o]' task=needle 'budgets=[64,0.5]' limit=10
  pvcbench task=perplexity model=hf model.name=ORG/NAME seed=1
  pvcbench +experiment=quickstart     a whole experiment; experiment=NAME only names the results folder
  pvcbench --multirun seed=0,1,2 method=pvc

A VALUE that names a file or folder needs no quotes but the shell's: 'task.path=my data (1)/a=b.jsonl' is taken as it
stands, as is every text that Hydra's grammar cannot read. In a multirun commas separate values: write a name that has
one in quotes of its own, "task.path='a,b.jsonl'". `pvcbench list` names what can be
chosen. Results go to RESULTS/EXPERIMENT/RUN (results=FOLDER, experiment=NAME); the same command again goes on where it
stopped.
"""


class RunFailed(Exception):
    """A run of a multirun failed and has said why; carries its exit code."""


def parser(**options) -> Parser:
    """What can be asked."""
    made = Parser(
        "pvcbench run",
        description="Measures methods at budgets on a task; the full cache is always added as the reference.",
        epilog=MORE,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
        **options,
    )
    made.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings, such as method=pvc task=needle")
    made.add_argument(
        "--config-dir",
        "-cd",
        action="append",
        default=[],
        metavar="DIR",
        help="a folder of your own: YAML files in DIR/method, DIR/task and so on, as in conf/, modules beside these",
    )
    made.add_argument("--multirun", "-m", action="store_true", help="one run per combination of values with commas")
    made.add_argument(
        "--cfg",
        "-c",
        choices=["job"],
        help="print the whole configuration, all keys of it, and stop (`job` is its only value)",
    )
    return made


def run(asked: Namespace) -> int:
    """One run, a multirun through Hydra, or the configuration alone."""
    for one in asked.overrides:
        if "=" not in one.lstrip("~") and not one.startswith("~"):
            raise UserError(f"what is {one!r}? write KEY=VALUE, or a command; `pvcbench --help` names them")
    if asked.multirun:
        return multirun(asked)
    from omegaconf import OmegaConf

    from pvcbench.config import compose as configuration

    config = configuration.composed(asked.overrides, asked.config_dir)
    if asked.cfg:
        with printing():
            print(OmegaConf.to_yaml(config), end="")
        return 0
    return once(config, [*(word for folder in asked.config_dir for word in ("--config-dir", folder)), *asked.overrides])


def once(config, words: Sequence[str] | None = None) -> int:
    """One run, its table and where its files are; 1 where some method failed in all of its cells.

    `words` are those that asked for the run, which the commands printed at its end repeat; None: of a multirun.
    """
    from pvcbench.config import settings

    settings.check(config)
    with signals.orderly():
        from pvcbench.runs import receipts

        known = receipts.find(config)
        if known is not None:
            from pvcbench.runs.result import Mirror, report

            return told_of(report(known.folder, known.task, 0, known.asked, Mirror.of(config), config.figures), words)
        from pvcbench.runs import runner  # takes seconds to import

        result = runner.run(config)
    return told_of(result, words)


def told_of(result, words: Sequence[str] | None = None) -> int:
    """Shows what a run came to; 1 where some method failed in all of its cells."""
    from pvcbench.cli import run_table

    gc.freeze()  # statsmodels collects garbage at each correction: let it not walk through every module each time
    try:
        with printing():
            run_table.show(result, words)
    finally:
        gc.unfreeze()
    failed = result.failed
    for line in failed:
        print(f"pvcbench: {line}", file=sys.stderr)
    return 1 if failed else 0


def checked(overrides: list[str], folders: list[str]) -> list[dict]:
    """The configurations of all runs of a multirun; raises UserError where one of them is wrong."""
    from omegaconf import OmegaConf

    from pvcbench.config import compose as configuration
    from pvcbench.config import settings
    from pvcbench.sweeps.manifest import combinations

    runs = []
    for run in combinations(overrides, folders):
        config = configuration.composed(run, folders)
        settings.check(config)
        runs.append(OmegaConf.to_container(config))
    return runs


def multirun(asked: Namespace) -> int:
    """One run per combination, by Hydra's own sweeper and launcher; where one fails, the others go on.

    All of them are composed and checked before the first one starts.
    """
    import hydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from pvcbench.config import compose as configuration

    own = [one for one in asked.overrides if one.startswith(("hydra.", "hydra/", "+hydra.", "++hydra.", "+hydra/"))]
    folders = [os.path.abspath(folder) for folder in asked.config_dir]
    runs = checked([one for one in asked.overrides if one not in own], folders)
    parent, codes = os.getpid(), []

    def job(config):  # submitit's launchers pickle it: it may hold nothing but plain data
        configuration.folders_of(folders)
        code = told(lambda: once(OmegaConf.create(runs[config.multirun])))
        if code >= 128:
            raise KeyboardInterrupt  # stopped: no further run starts
        if code and os.getpid() != parent:
            raise RunFailed(code)
        codes.extend([code] if code else [])  # of this process, where Hydra would add words of its own

    sys.argv = [sys.argv[0], "--multirun", *own, f"+multirun={','.join(map(str, range(len(runs))))}"]
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        hydra.main(config_path=str(configuration.CONF), config_name="config", version_base="1.3")(job)()
    except RunFailed as error:
        return error.args[0]
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(configuration.explain(error)) from error
    return codes[0] if codes else 0
