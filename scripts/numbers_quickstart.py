"""What the documents say of the newest committed run of the experiment `quickstart`, in numbers from its rows."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

import pvcbench
from pvcbench.errors import UserError
from pvcbench.stats import significance, summaries
from scripts.numbers_words import called, joined, paragraph, percent, pvalue
from scripts.written_page import ROOT, table

EXPERIMENT = "quickstart"
PAIR, SIZE = ("h2o", "streaming_llm"), "0.25"  # the worked example: two methods, and the budget of its first half
ENDS = (-1, 0, 0.2, 0.4, 0.6, 0.8, 1 - 1e-9, 1)  # classes of how much of a needle is left
CLASSES = ("none", "up to 20%", "20-40%", "40-60%", "60-80%", "80-100%", "all")


def newest(results: Path, experiment: str = EXPERIMENT) -> Path:
    """The folder of an experiment's run that began last."""
    found = {
        json.loads(path.read_text(encoding="utf-8"))["started"]: path.parent
        for path in sorted((results / experiment).glob("*/environment.json"))
    }
    if not found:
        raise UserError(f"{results / experiment} has no run: `pvcbench +experiment={experiment}` measures it")
    return found[max(found)]


def points(line: pd.Series) -> str:
    """The interval of a difference of shares, in points."""
    return f"[{100 * line['low']:.1f}, {100 * line['high']:.1f}]"


class Quickstart:
    """The run, its summary and what is said of both."""

    def __init__(self, results: Path = ROOT / "results") -> None:
        self.folder = newest(results)
        self.rows = pvcbench.load(self.folder)
        self.table = summaries.summarize(self.rows)
        self.samples = self.rows["sample"].nunique()
        self.name = f"results/{EXPERIMENT}/{self.folder.name}"

    @property
    def methods(self) -> list[str]:
        """Those with budgets, in the order of the rows."""
        return list(dict.fromkeys(self.rows[~self.rows["reference"].astype(bool)]["method"]))

    @property
    def budgets(self) -> list[str]:
        """All budgets, small ones first."""
        return sorted(set(self.rows[~self.rows["reference"].astype(bool)]["budget"]), key=float)

    def cell(self, method: str, budget: str) -> pd.Series:
        """A cell's line of the summary."""
        return self.table[(self.table["method"] == method) & (self.table["budget"] == budget)].iloc[0]

    def full(self) -> pd.Series:
        """The full cache's line."""
        return self.table[self.table["reference"].astype(bool)].iloc[0]

    def right(self, line: pd.Series) -> int:
        """How many prompts a cell answered."""
        return round(line["score"] * line["samples"])

    def reachable(self) -> str:
        """The smallest budget at which every method that ran at all has answers."""
        whole = [
            budget for budget in self.budgets if all(self.cell(method, budget)["samples"] for method in self.methods)
        ]
        return whole[0] if whole else self.budgets[-1]

    def shown(self) -> str:
        """README's sentences on the picture."""
        tokens, budget = self.rows["prompt_tokens"].max(), self.reachable()
        cells = sorted((self.cell(method, budget) for method in self.methods), key=lambda one: -one["score"])
        counts = [f"{called(one['method'])} {self.right(one)}" for one in cells]
        widest = (self.table["high"] - self.table["low"]).max() / 2
        return paragraph(
            f"The picture is the committed run `{self.name}`: {self.samples} prompts of {tokens:,.0f} tokens, each "
            f"with one hidden word that the question asks for. The full cache answers {self.right(self.full())} of "
            f"{self.samples}. With {percent(budget)} of the cache left the counts are: {joined(counts)}. "
            f"{self.limits()}So few prompts leave each share uncertain by up to {100 * widest:.0f} points either way."
        )

    def limits(self) -> str:
        """A sentence for each method that cannot reach a size."""
        found = self.table[self.table["reach"].notna()].groupby("method")["reach"].max()
        told = [
            f"{called(method)} cannot keep less than {reach:.0%} of such a prompt" for method, reach in found.items()
        ]
        return f"{joined(told)}. " if told else ""

    def answers(self) -> str:
        """Right answers of every cell."""
        whole = f"right answers, of {self.samples} (full cache: {self.right(self.full())})"
        head, rows = [whole, *map(percent, self.budgets)], []
        for method in self.methods:
            cells = [self.cell(method, budget) for budget in self.budgets]
            counts = [str(self.right(one)) if one["samples"] else "out of reach" for one in cells]
            rows.append([f"`{method}`", *counts])
        return table(head, rows)

    def survival(self) -> str:
        """Right answers by how much of the needle was left, over all methods and budgets."""
        done = self.rows[~self.rows["reference"].astype(bool) & self.rows["score"].notna()]
        left = done["spans_kept"].map(lambda spans: float(np.mean(spans["needle"])))
        groups = done.groupby(pd.cut(left, ENDS, labels=CLASSES), observed=False)["score"].agg(["sum", "count"])
        counts = [f"{line['sum']:.0f} of {line['count']:.0f}" for _, line in groups.iterrows()]
        return table(["of the needle is left", *CLASSES], [["right answers", *counts]])

    def one(self) -> str:
        """The worked example of one cell's interval."""
        line = self.cell(PAIR[0], SIZE)
        return paragraph(
            f"In `{self.name}` {called(PAIR[0])} answers {self.right(line)} of {line['samples']} prompts at "
            f"{percent(SIZE)} of the cache. The score is {line['score']:.0%}. Its 95% interval goes from "
            f"{line['low']:.0%} to {line['high']:.0%}: were the run repeated with other prompts of the same kind, "
            "about 95 of 100 such intervals would hold the true share. It is Wilson's interval for a proportion."
        )

    def pair(self) -> str:
        """The worked example of a paired difference."""
        own = self.rows[self.rows["score"].notna() & (self.rows["budget"] == SIZE)]
        first, second = (own[own["method"] == method].set_index("sample")["score"] > 0.5 for method in PAIR)
        second, names = second.reindex(first.index), [called(method) for method in PAIR]
        line = significance.versus(self.rows, *PAIR, SIZE)
        apart = "not hold zero, so the two are" if line["p"] < significance.ALPHA else "hold zero, so the two are not"
        return paragraph(
            f"{names[0]} and {names[1]} answered the same {line['samples']} prompts. Both are right on "
            f"{(first & second).sum()}, neither on {(~first & ~second).sum()}, only {names[0]} on "
            f"{(first & ~second).sum()}, and only {names[1]} on {(~first & second).sum()}. The difference is "
            f"{100 * line['difference']:+.0f} points. Its interval, {points(line)}, does {apart} told apart at this "
            f"size, if this is the only comparison that is made: p = {pvalue(line['p'])}. Only the prompts on which "
            "the two differ count in this test. That is why it tells more than two intervals laid side by side."
        )

    def compared(self) -> pd.DataFrame:
        """The pair at every size that both reach, with p after Holm over these."""
        lines = [significance.versus(self.rows, *PAIR, budget) for budget in self.both()]
        found = pd.DataFrame(lines)
        return found.assign(p_holm=significance.holm(found["p"]))

    def both(self) -> Iterator[str]:
        """The budgets at which both methods of the pair have answers."""
        for budget in self.budgets:
            if all(self.cell(method, budget)["samples"] for method in PAIR):
                yield budget

    def many(self) -> str:
        """The worked example of Holm's correction."""
        found = self.compared()
        rows = [
            [
                percent(line["budget"]),
                f"{100 * line['difference']:+.0f}",
                points(line),
                *(pvalue(line[p]) for p in ("p", "p_holm")),
            ]
            for _, line in found.iterrows()
        ]
        head = ["cache kept", f"{called(PAIR[0])} minus {called(PAIR[1])}, points", "interval", "p", "p after Holm"]
        alone, left = ((found[name] < significance.ALPHA).sum() for name in ("p", "p_holm"))
        text = paragraph(
            f"Of these {len(found)} differences {alone} have an interval without zero, and Holm's correction leaves "
            f"{left}. Who looks at all sizes and then picks the best one has made {len(found)} comparisons, and must "
            "read the last column."
        )
        return f"{table(head, rows)}\n\n{text}"


def coverage(results: Path = ROOT / "results") -> str:
    """How often simulated intervals hold the truth."""
    lines = pd.DataFrame(json.loads((results / "bench" / "coverage.json").read_text(encoding="utf-8"))["lines"])
    clusters, least = sorted(lines["clusters"].unique()), lines.loc[lines["coverage"].idxmin()]
    worst = lines.loc[lines["bootstrap"].astype(float).idxmin()]
    high = lines[lines["coverage"] > 0.99]["kind"].unique()
    held = f"{least['coverage']:.1%} to {lines['coverage'].max():.1%}"
    return paragraph(
        f"`scripts/coverage.py` simulates {lines['kind'].nunique()} kinds of data with {joined(map(str, clusters))} "
        f"clusters. The intervals hold the truth in {held} of the samples. The least is that of {least['clusters']} "
        f"clusters of the kind *{least['kind']}*. More than 99% are reached by these kinds: *{'*, *'.join(high)}*. The "
        f"percentile bootstrap, which is much used, held the truth in {worst['bootstrap']:.0%} of the samples at worst "
        f"({worst['clusters']} clusters of the kind *{worst['kind']}*)."
    )
