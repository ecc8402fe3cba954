"""Simulates how often the 95% intervals of pvcbench.stats.intervals hold the truth: python scripts/coverage.py

For each kind of data and n clusters (data sets: n in each), `--replicates` data sets are drawn from a known truth. The
result has the share of intervals that hold it, its standard error, the median width, and for comparison the share of
percentile bootstrap intervals (fewer draws). p is below 0.05 exactly where an interval misses zero, so the share of
false alarms is what is missing to one. Writes results/bench/coverage.json and its picture; the last line is that JSON.
"""

import argparse
import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pvcbench.costs import bench_document
from pvcbench.plots.canvas import WIDTH, head
from pvcbench.plots.drawn_from import fingerprint
from pvcbench.plots.run_figures import save
from pvcbench.plots.style import BLUE, DASHED, ORANGE
from pvcbench.stats.intervals import DIFFERENCES, SCORES, of_clusters, proportion_interval, tango, wilson

ROOT = Path(__file__).resolve().parent.parent
NUMBERS = (10, 20, 30, 100)
BAND = (0.93, 0.99)  # where the coverage of a 95% interval should lie
RESAMPLES, BOOTSTRAPPED = 1000, 2000  # of the percentile bootstrap: resamples, and data sets at most
Drawn = tuple[np.ndarray, float]  # values [clusters, replicates] and the true mean


def normal(rng, *shape) -> Drawn:
    return rng.normal(0.3, 1, shape), 0.3


def lognormal(rng, *shape) -> Drawn:
    return rng.lognormal(0, 1, shape), np.exp(0.5)


def exponential(rng, *shape) -> Drawn:
    return rng.exponential(1, shape), 1.0


def heavy(rng, *shape) -> Drawn:
    return rng.standard_t(3, shape), 0.0


def fours(rng, *shape) -> Drawn:
    """Clusters of four items, half of the variance between clusters."""
    return rng.normal(0, 1, shape) + rng.normal(0, 1, (*shape, 4)).mean(-1), 0.0


def masses(zero: float, one: float, between: Callable = lambda rng, shape: rng.random(shape), mean: float = 0.5):
    """Scores that are 0 and 1 with these probabilities and something between else."""

    def draw(rng, *shape) -> Drawn:
        which = rng.random(shape)
        return np.where(which < zero, 0.0, np.where(which < zero + one, 1.0, between(rng, shape))), one + mean * (
            1 - zero - one
        )

    return draw


def losses(same: float):
    """Differences of F1: none for this share of the samples, else a loss of anything up to 1."""

    def draw(rng, *shape) -> Drawn:
        return np.where(rng.random(shape) < same, 0.0, -rng.random(shape)), -(1 - same) / 2

    return draw


def binomial(share: float, items: int, spread: float, sign: int = 1):
    """Shares of right answers in clusters of items whose probabilities differ (beta, a + b = `spread`)."""

    def draw(rng, *shape) -> Drawn:
        return sign * rng.binomial(items, rng.beta(share * spread, (1 - share) * spread, shape)) / items, sign * share

    return draw


def flips(fewer: float, more: float):
    """Differences of zeros and ones: -1 and 1 with these probabilities."""

    def draw(rng, *shape) -> Drawn:
        which = rng.random(shape)
        return np.where(which < fewer, -1.0, np.where(which < fewer + more, 1.0, 0.0)), more - fewer

    return draw


def by_clusters(draw, bounds=None, sets: tuple[int, ...] = (1,)):
    """Simulates `of_clusters`; `sets` are data sets, each with that multiple of n clusters."""

    def simulate(rng, number: int, replicates: int) -> tuple:
        strata = np.repeat(range(len(sets)), np.array(sets) * number)
        values, truth = draw(rng, len(strata), replicates)
        found = of_clusters(values, strata=strata, bounds=bounds)
        return found.low, found.high, truth, values if len(sets) == 1 else None

    return simulate


def unequal(rng, number: int, replicates: int) -> tuple:
    """Clusters of one to eight items."""
    sizes = rng.integers(1, 9, (number, replicates))
    means = rng.normal(0, 1, sizes.shape) + rng.normal(0, 1, sizes.shape) / np.sqrt(sizes)
    found = of_clusters(means * sizes, sizes)
    return found.low, found.high, 0.0, None


def ratio(rng, number: int, replicates: int) -> tuple:
    """A ratio of sums: bits per byte of documents of unlike length."""
    sizes, rate = rng.lognormal(8, 0.5, (number, replicates)), rng.lognormal(0, 0.5, (number, replicates))
    found = of_clusters(sizes * rate, sizes)
    return found.low, found.high, np.exp(0.125), None


def by_counts(draw, interval: Callable):
    """Simulates an interval that depends on counts of single items alone: of -1 and 1, or of ones."""
    known = cache(interval)

    def simulate(rng, number: int, replicates: int) -> tuple:
        values, truth = draw(rng, number, replicates)
        counts = zip((values > 0).sum(0).tolist(), (values < 0).sum(0).tolist(), strict=True)
        low, high = np.array([known(*pair, number)[:2] for pair in counts]).T
        return low, high, truth, values

    return simulate


def often(rng, number: int, replicates: int) -> tuple:
    """The share of right answers where each prompt is asked at six budgets."""
    prompts, replicates = pd.Series(np.repeat(range(number), 6)), min(replicates, 2000)
    chances = rng.beta(0.6, 0.4, (replicates, number)).repeat(6, axis=1)
    hits = rng.random(chances.shape) < chances
    low, high = np.array([proportion_interval(pd.Series(one), prompts) for one in hits]).T
    return low, high, 0.6, None


KINDS = {
    "normal values": by_clusters(normal),
    "log-normal values": by_clusters(lognormal),
    "exponential values": by_clusters(exponential),
    "heavy tails (t, 3 df)": by_clusters(heavy),
    "clusters of four": by_clusters(fours),
    "clusters of one to eight": unequal,
    "ratio of sums (bits/byte)": ratio,
    "four sets, log-normal": by_clusters(lognormal, sets=(1, 1, 1, 1)),
    "F1: 30% 0, 30% 1": by_clusters(masses(0.3, 0.3), SCORES),
    "F1: 5% 0, 80% 1": by_clusters(masses(0.05, 0.8), SCORES),
    "F1 around 0.2, no masses": by_clusters(masses(0, 0, lambda rng, shape: rng.beta(2, 8, shape), 0.2), SCORES),
    "three unlike sets of F1": by_clusters(masses(0.05, 0.8), SCORES, (1, 2, 3)),
    "0 and 1, clusters of four": by_clusters(binomial(0.3, 4, 2), SCORES),
    "0 and 1, single, 10% (Wilson)": by_counts(masses(0.9, 0.1), lambda more, fewer, n: wilson(more, n)),
    "one prompt, six budgets": often,
    "F1 differences, 80% none": by_clusters(losses(0.8), DIFFERENCES),
    "F1 differences, 95% none": by_clusters(losses(0.95), DIFFERENCES),
    "rare differences, clusters of four": by_clusters(binomial(0.1, 4, 1, -1), DIFFERENCES),
    "pairs: 8% lost, 1% won (Tango)": by_counts(flips(0.08, 0.01), tango),
    "pairs: 30% lost (Tango)": by_counts(flips(0.3, 0.0), tango),
}


def simulate(kinds, numbers, replicates: int, seed: int = 0) -> list[dict]:
    """One line per kind and number of clusters; every one has a random stream of its own."""
    lines = []
    for place, kind in enumerate(kinds):
        for number in numbers:
            rng = np.random.default_rng([seed, place, number])
            low, high, truth, values = KINDS[kind](rng, number, replicates)
            known = ~np.isnan(low)
            share = float(((low <= truth) & (truth <= high))[known].mean())
            line = {"kind": kind, "clusters": number, "coverage": round(share, 4)}
            line["standard_error"] = round(float(np.sqrt(share * (1 - share) / known.sum())), 4)
            line |= {"width": float(f"{np.median((high - low)[known]):.4g}"), "without": int((~known).sum())}
            line["bootstrap"] = None if values is None else round(bootstrapped(rng, values[:, :BOOTSTRAPPED], truth), 4)
            lines.append(line)
    return lines


def bootstrapped(rng, values: np.ndarray, truth: float) -> float:
    """The coverage of percentile bootstrap intervals of the mean, values as [clusters, replicates]."""
    number = len(values)
    weights = rng.multinomial(number, np.full(number, 1 / number), RESAMPLES) / number
    low, high = np.quantile(weights @ values, (0.025, 0.975), axis=0)
    return float(((low <= truth) & (truth <= high)).mean())


def picture(lines: list[dict]) -> Figure:
    """Coverage by number of clusters, a panel for each kind of data."""
    table = pd.DataFrame(lines)
    kinds = table["kind"].unique()
    wide, tall = min(4, len(kinds)), -(-len(kinds) // 4)
    figure = Figure(figsize=(WIDTH, 1.0 + 1.35 * tall), layout="constrained")
    panels = figure.subplots(tall, wide, sharex=True, sharey=True, squeeze=False).flat
    for kind, axes in zip(kinds, panels, strict=False):
        places = range(len(part := table[table["kind"] == kind]))
        axes.axhspan(*(100 * end for end in BAND), color="#DDDDDD", linewidth=0, label="wanted: 93 to 99%")
        axes.axhline(95, color="#777777", linewidth=0.6)
        if part["bootstrap"].notna().all():
            look = {"color": ORANGE, "marker": "s", "linestyle": DASHED, "markersize": 4}
            axes.plot(
                places, 100 * part["bootstrap"].astype(float), label="percentile bootstrap, for comparison", **look
            )
        error = 200 * part["standard_error"]
        look = {
            "color": BLUE,
            "marker": "o",
            "markersize": 4,
            "capsize": 2,
            "label": "pvcbench (bars: 2 standard errors)",
        }
        axes.errorbar(places, 100 * part["coverage"], error, **look)
        axes.set_title(kind, fontsize=7)
        axes.set_xticks(places, part["clusters"])
        low = min(78, 100 * table["coverage"].min() - 2)
        axes.set_ylim(low, 101)
        for place, share in zip(places, 100 * part["bootstrap"].astype(float), strict=True):
            if share < low:  # a point below the axis is told, not left out
                axes.plot(place, low + 1, marker="v", color=ORANGE, markersize=4, clip_on=False)
                axes.annotate(f"{share:.0f}", (place, low + 1), (5, 0), textcoords="offset points", fontsize=7)
    for unused in list(figure.axes)[len(kinds) :]:
        unused.remove()
    figure.supxlabel("clusters, such as documents (of several data sets: in each)", fontsize=9)
    figure.supylabel("95% intervals that hold the truth, % (triangles: below the axis)", fontsize=9)
    handles = {label: one for axes in figure.axes for one, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    head(figure, "simulated samples, a panel for each kind of data", list(handles.values()))
    return figure


def draw(source: Path, folder: Path) -> list[Path]:
    """Draws what a file of this script's shows into a folder and returns the paths."""
    found = json.loads(source.read_text(encoding="utf-8"))
    return save(lambda: [(source.stem, picture(found["lines"]))], folder, fingerprint([found]), [source.name])


def main() -> None:
    """Simulates, writes and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=20000)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "bench" / "coverage.json")
    options = parser.parse_args()
    result = {"replicates": options.replicates, "lines": simulate(KINDS, NUMBERS, options.replicates)}
    bench_document.finish(result, options.out)
    draw(options.out, options.out.parent / "figures")


if __name__ == "__main__":
    main()
