"""What the reports of all analyses share: groups of samples, intervals over clusters, trends with depth, canvases."""

from collections.abc import Iterator, Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from scipy import stats as scipy_stats

from pvcbench.plots.canvas import WIDTH, head
from pvcbench.plots.style import SEQUENTIAL
from pvcbench.stats.intervals import DIFFERENCES, FEWEST_CLUSTERS, SCORES, Bounds, of_clusters
from pvcbench.stats.summaries import info

SHARES, RANKS = SCORES, DIFFERENCES


def observations(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of what samples show by themselves, without those that failed."""
    return rows[rows["method"].isna() & rows["error"].isna()]


def groups(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Samples of one kind and length, by name: documents of 2,048 tokens, needle prompts of 4,096 tokens, ..."""
    texts, lengths = info(rows, "text"), info(rows, "length")
    for length in sorted(lengths.dropna().unique()):
        for text, name in (("document", "documents"), ("needle", "needle prompts")):
            chosen = rows[(texts == text) & (lengths == length)]
            if len(chosen):
                yield f"{name}, {int(length):,} tokens", chosen


def field(rows: pd.DataFrame, *keys: str) -> np.ndarray:
    """One entry of every row's observations, stacked: [samples, ...]; nulls are NaN."""

    def entry(observed):
        for key in keys:
            observed = observed[key]
        return np.array(observed, dtype=float)

    return np.stack([entry(observed) for observed in rows["observed"]])


def intervals(
    values: np.ndarray, clusters: pd.Series, bounds: Bounds = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means over clusters of samples, [samples, ...] to [...], with the ends of their 95% intervals.

    `bounds` are the least and the largest value there can be: SHARES, RANKS (of correlations), or none. Fewer than ten
    clusters with a value: NaN ends. No spread between them, as in what is so by definition: both ends are the mean.
    """
    values = np.asarray(values, dtype=float)
    flat = pd.DataFrame(values.reshape(len(values), -1)).groupby(np.asarray(clusters)).mean().to_numpy()
    known = ~np.isnan(flat)
    mean, low, high, _ = of_clusters(np.where(known, flat, 0.0), known, bounds=bounds)
    constant = (np.abs(np.where(known, flat, mean) - mean) <= 1e-12).all(0) & (known.sum(0) >= FEWEST_CLUSTERS)
    low, high = (np.where(constant, mean, end) for end in (low, high))
    return tuple(part.reshape(values.shape[1:]) for part in (mean, low, high))


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rho of two equally long arrays over the places where both have a value; NaN where one is constant."""
    first, second = np.ravel(first).astype(float), np.ravel(second).astype(float)
    known = ~(np.isnan(first) | np.isnan(second))
    if known.sum() < 3 or np.ptp(first[known]) == 0 or np.ptp(second[known]) == 0:
        return float("nan")
    return float(scipy_stats.spearmanr(first[known], second[known]).statistic)


def depth_trend(values: np.ndarray) -> float:
    """Spearman's rho of a value by layer, [layers], with the layer's depth."""
    return rank_correlation(np.arange(len(values)), values)


def with_ends(mean: float, low: float, high: float, digits: int = 3) -> str:
    """A number with its interval, as tables show it."""
    if np.isnan(mean):
        return ""
    return f"{mean:.{digits}f}" if np.isnan(low) else f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def subject(rows: pd.DataFrame) -> str:
    """The title of an analysis' figures."""
    model = str(rows["model"].iloc[0]).rstrip("/").split("/")[-1]
    number = observations(rows)["sample"].nunique() if "observed" in rows else 0
    told = f", {number} samples" if number else ""
    return f"{rows['task'].iloc[0].replace('_', ' ')}, {model}{told}"


def by_length(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Samples of one length, the longest first, with what the names of its figures end with: nothing for the longest.

    A figure of one length has half of the panels; tables have all lengths.
    """
    lengths = info(rows, "length")
    for number, length in enumerate(sorted(lengths.dropna().unique(), reverse=True)):
        yield f"_{int(length)}_tokens" if number else "", rows[lengths == length]


def canvas(
    rows: pd.DataFrame, names: list[str], handles: Sequence[Artist] = (), tall: float = 2.5, shared: bool = True
) -> tuple[Figure, list]:
    """A figure with one titled panel per name, up to two in a row and `tall` inches high: (figure, panels).

    Its head has the title and, of `handles`, the legend. Panels share their axes unless told otherwise.
    """
    wide = min(len(names), 2)
    high = -(-len(names) // wide)
    figure = Figure(figsize=(WIDTH, 0.8 + tall * high), layout="constrained")
    panels = list(figure.subplots(high, wide, squeeze=False, sharex=shared, sharey=shared).flat)
    for unused in panels[len(names) :]:
        unused.remove()
    for name, axes in zip(names, panels, strict=False):
        axes.set_title(name)
        axes.tick_params(labelbottom=True)
    head(figure, subject(rows), handles)
    return figure, panels[: len(names)]


def grid(
    rows: pd.DataFrame, titles: list[list[str]], handles: Sequence[Artist], tall: float
) -> tuple[Figure, np.ndarray]:
    """A figure with a panel per title, lines by columns; lines share the y axis, columns the x axis."""
    shape = len(titles), len(titles[0])
    figure = Figure(figsize=(WIDTH, 0.8 + tall * shape[0]), layout="constrained")
    panels = figure.subplots(*shape, squeeze=False, sharex="col", sharey="row")
    for axes, title in zip(panels.flat, (title for line in titles for title in line), strict=True):
        axes.set_title(title, fontsize=8)
    head(figure, subject(rows), handles)
    return figure, panels


def layer_colours(layers: int) -> matplotlib.colors.ListedColormap:
    """A colour per layer, dark to light with depth."""
    return matplotlib.colors.ListedColormap(SEQUENTIAL(np.linspace(0.0, 0.92, layers)))


def layer_bar(figure: Figure, panels: list, layers: int) -> None:
    """The colour bar that says which line is which layer."""
    shades = ScalarMappable(Normalize(-0.5, layers - 0.5), layer_colours(layers))
    figure.colorbar(shades, ax=panels, label="layer", aspect=max(15, 7.5 * len(panels)), pad=0.02)  # as wide anywhere
