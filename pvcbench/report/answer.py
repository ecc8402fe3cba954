"""Which methods keep most at 10, 25 and 40% of the cache, and how sure that is: the report's first screen.

    answer.at_sizes(rows, significance.compared(rows), floors={"random"})

At every size each method stands with its cell nearest to that size, if that lies within a tenth of it. The best score
is compared with every other, sample by sample, and Holm's correction made over these comparisons; what is then not told
apart from the best leads together with it. References that read the answer, the random floor and cells that lack scores
of some samples are no candidates.
"""

from collections.abc import Set
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from pvcbench.plots import style
from pvcbench.plots.style import amount
from pvcbench.runs.stored import stored
from pvcbench.stats import significance, sizes, summaries, ties

TARGETS = (0.1, 0.25, 0.4)  # shares of the full cache
RANDOM = "Random"  # the class of methods that choose at random, as a run's identity names it
HERE = "here"  # the budget that cells of one size share while they are compared
COMPARED = ["sample", "method", "budget", "reference", "score", "error", "prompt_sha256", "cluster", "stratum"]
COMPARED += ["kv_bytes", "kept_fraction"]  # what a comparison reads of a row
LEAKS = "reads what follows the prompt"
FLOOR = "the random floor"
INCOMPLETE = "no score of some samples"
NO_SCORE = "no score"


@dataclass(frozen=True)
class Candidate:
    """A cell at a size: its line of the summary, and what separates it from the best there."""

    line: dict
    difference: float | None = None  # score minus the best's (of likelihoods: minus the mean NLL)
    low: float = float("nan")
    high: float = float("nan")
    p: float = float("nan")  # corrected; NaN of the best itself and where nothing can be tested

    @property
    def method(self) -> str:
        return self.line["method"]

    @property
    def apart(self) -> bool:
        """Whether a test tells it from the best."""
        return self.p < significance.ALPHA


@dataclass(frozen=True)
class AtSize:
    """The verdict at one size."""

    target: float
    measure: str  # the column of the summary that is compared with the target
    leading: list[Candidate] = field(default_factory=list)  # the best first
    behind: list[Candidate] = field(default_factory=list)
    aside: dict[str, list[dict]] = field(default_factory=dict)  # cells of this size that are no candidates, by reason
    nearest: dict | None = None  # the cell nearest to the target where none has its size

    @property
    def tested(self) -> int:
        """Comparisons with the best that a test was made of."""
        return sum(not pd.isna(one.p) for one in (*self.leading, *self.behind))


def at_sizes(rows: pd.DataFrame, table: pd.DataFrame, floors: Set[str]) -> list[AtSize]:
    """The verdict at every size; `table` is the summary of these rows, `floors` names methods that choose at random."""
    return [at_size(rows, table, target, floors) for target in TARGETS]


def at_size(rows: pd.DataFrame, table: pd.DataFrame, target: float, floors: Set[str]) -> AtSize:
    """The verdict at one size."""
    measure = sizes.axis(table)
    scored = table[table["score"].notna() & table[measure].notna() & ~table["reference"].astype(bool)]
    scored = scored.assign(off=(scored[measure] - target).abs())
    here = nearest_of_each(scored[scored["off"] <= sizes.OFF * target])
    why = here.apply(lambda line: reason(line, floors), axis=1) if len(here) else pd.Series(dtype=object)
    aside = {text: here[why == text].to_dict("records") for text in (LEAKS, FLOOR, INCOMPLETE) if (why == text).any()}
    lost = without_score(table, target, set(here["method"]))
    aside |= {NO_SCORE: lost} if lost else {}
    candidates = here[why == ""] if len(here) else here
    if candidates.empty:
        eligible = [not reason(line, floors) for _, line in scored.iterrows()]
        others = scored[pd.Series(eligible, scored.index, dtype=bool)].sort_values("off", kind="stable")
        known = others.to_dict("records") if not aside.keys() - {NO_SCORE} else []
        return AtSize(target, measure, aside=aside, nearest=known[0] if known else None)
    leading, behind = groups(rows, candidates, lower="perplexity" in table)
    return AtSize(target, measure, leading, behind, aside)


def nearest_of_each(cells: pd.DataFrame) -> pd.DataFrame:
    """Each method's cell: one with a score of every sample before others, then the nearest to the target."""
    order = cells.assign(lacks=~cells["complete"].astype(bool)).sort_values(["lacks", "off"], kind="stable")
    return order.drop_duplicates("method").drop(columns="lacks")


def without_score(table: pd.DataFrame, target: float, measured: Set[str]) -> list[dict]:
    """The cells that were asked for this share and have no score, of methods that have none here either."""
    lost = table[table["score"].isna() & ~table["method"].isin(measured)]
    return [line for line in lost.to_dict("records") if amount(line["budget"]) == target]


def reason(line: pd.Series, floors: Set[str]) -> str:
    """Why a cell is no candidate; nothing where it is one."""
    if line["leaks"]:
        return LEAKS
    if line["method"] in floors:
        return FLOOR
    return "" if line["complete"] else INCOMPLETE


def groups(rows: pd.DataFrame, candidates: pd.DataFrame, lower: bool) -> tuple[list[Candidate], list[Candidate]]:
    """The candidates that tests do not tell apart from the best, the best first, and the others; each by score."""
    order = candidates.sort_values("off", kind="stable").sort_values("score", ascending=lower, kind="stable")
    lines = order.to_dict("records")
    best, others = lines[0], lines[1:]
    known = same_size(rows, lines)
    found = ties.against_best(known, best["method"], [one["method"] for one in others], HERE)
    compared = [
        Candidate(line, one["difference"], one["low"], one["high"], one["p"])
        for line, one in zip(others, found, strict=True)
    ]
    leading = [Candidate(best), *(one for one in compared if not one.apart)]
    return leading, [one for one in compared if one.apart]


def same_size(rows: pd.DataFrame, lines: list[dict]) -> pd.DataFrame:
    """The rows of these cells under one budget, and the full cache's."""
    rows = summaries.headline(rows)[COMPARED]
    budget = rows["method"].map({line["method"]: line["budget"] for line in lines})
    full, chosen = rows["reference"].astype(bool), rows["budget"].eq(budget)
    return pd.concat([rows[full], rows[chosen & ~full].assign(budget=HERE)])


def full_cache(table: pd.DataFrame) -> dict | None:
    """The summary's line of the full cache, where it has a score."""
    whole = table[table["reference"].astype(bool) & table["score"].notna()]
    return None if whole.empty else whole.iloc[0].to_dict()


def floors_of(rows: pd.DataFrame) -> set[str]:
    """The methods that choose at random, by their class or by the name that the figures know."""
    found = {style.FLOOR}
    for folder in filter(is_kept, rows["folder"].unique()):
        methods = stored(Path(folder))["identity"].get("methods") or {}
        found |= {name for name, made in methods.items() if made.get("class") == RANDOM}
    return found


def is_kept(folder: str) -> bool:
    """Whether rows come from a run's folder, and not from a table that was put together in memory."""
    return (Path(folder) / "config.yaml").is_file()
