"""Settings: the runs of one experiment that differ in seed, methods and budgets alone, joined to one table of rows.

dict(settings.groups(load_table("results")))  # rows by the setting's name
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pvcbench import analyses
from pvcbench.runs.run_id import essence
from pvcbench.runs.stored import stored


@dataclass
class Setting:
    """Runs that belong together: what they measured, by which methods, and their rows."""

    experiment: str
    measured: str
    methods: dict
    runs: list[pd.DataFrame]

    @classmethod
    def of(cls, run: pd.DataFrame) -> "Setting":
        """The setting of one run, by its config.yaml; of analyses and speeds methods and budgets are part of it."""
        folder = Path(run["folder"].iloc[0])
        identity = dict(stored(folder)["identity"])
        aside = ("seed", "methods", "budgets") if analyses.reporter(run) is None else ("seed",)
        measured = {key: value for key, value in essence(identity).items() if key not in aside}
        text = json.dumps(measured, sort_keys=True, default=str)
        return cls(run["experiment"].iloc[0], text, identity.get("methods") or {}, [run])

    def fits(self, other: "Setting") -> bool:
        """Whether another run may join: the same but for seed, methods and budgets, and no name for two methods."""
        shared = self.methods.keys() & other.methods.keys()
        alike = all(self.methods[name] == other.methods[name] for name in shared)
        return alike and (self.experiment, self.measured) == (other.experiment, other.measured)

    def rows(self) -> pd.DataFrame:
        """The rows of all runs; of a cell that several have, the first with a value. A document stays one cluster."""
        if len(self.runs) == 1:
            return self.runs[0]
        rows = pd.concat(self.runs, ignore_index=True)
        if rows["seed"].nunique() > 1:
            rows["sample"] = rows["seed"].astype(str) + "/" + rows["sample"]
        order = rows["error"].notna().sort_values(kind="stable").index
        kept = rows.loc[order].drop_duplicates(["sample", "method", "budget"]).index
        return rows.loc[kept.sort_values()].reset_index(drop=True)


def groups(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows of each setting by name: the experiment's, with a run's id where the experiment has several settings."""
    settings: list[Setting] = []
    for _, run in rows.groupby("folder"):
        new = Setting.of(run)
        known = next((one for one in settings if one.fits(new)), None)
        if known is None:
            settings.append(new)
        else:
            known.runs += new.runs
            known.methods |= new.methods
    experiments = [one.experiment for one in settings]
    for one in settings:
        alone = experiments.count(one.experiment) == 1
        yield one.experiment if alone else f"{one.experiment}-{one.runs[0]['run'].iloc[0]}", one.rows()
