"""Where things stand in a picture: its width, the head with the one legend, panels, and marks beside each other.

figure, panels = panels_of(3, rows, handles)
axes.plot(x, y, transform=beside(axes, 0, 3))  # the first of three marks at the same x
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation, Transform

from pvcbench.plots.style import BLACK, subject

WIDTH = 7.2  # inches: a page's text is about as wide, so that nothing is shrunk in print
ASIDE = "marks of one size stand side by side"  # what an axis says of marks that were moved
LETTER, KEY = 0.068, 0.55  # inches that a letter of a legend and the key beside it take
INTERVALS = "95% interval"


def head(figure: Figure, text: str, handles: Sequence[Artist] = (), columns: int | None = None) -> None:
    """The title and below it the figure's one legend in rows, above all panels, where it takes no width from them."""
    handles = [handle for handle in handles if handle is not None]
    if not handles:
        figure.suptitle(text, fontsize=9)
        return
    number = columns or columns_of([str(handle.get_label()) for handle in handles], figure.get_figwidth())
    look = {"title_fontsize": 9, "fontsize": 8.5, "columnspacing": 1.4, "handletextpad": 0.5, "borderaxespad": 0.2}
    legend = figure.legend(handles=list(handles), title=text, ncols=number, loc="outside upper center", **look)
    legend.get_title().set_multialignment("center")


def columns_of(labels: Sequence[str], width: float) -> int:
    """The most columns of a legend that a width in inches has room for; entries go down the columns."""
    for number in range(len(labels), 1, -1):
        tall = -(-len(labels) // number)
        parts = [labels[start : start + tall] for start in range(0, len(labels), tall)]
        longest = [max(len(line) for label in part for line in label.split("\n")) for part in parts]
        if sum(KEY + LETTER * letters for letters in longest) <= width:
            return len(parts)
    return 1


def unique(handles: Sequence[Artist]) -> list[Artist]:
    """The entries of a legend, each label once."""
    return list({handle.get_label(): handle for handle in handles}.values())


def interval_entry(label: str = INTERVALS) -> Line2D:
    """What a legend says of the bars through points."""
    return Line2D([], [], color=BLACK, marker="|", markersize=10, markeredgewidth=1.0, linestyle="none", label=label)


def panels_of(
    number: int, rows: pd.DataFrame, handles: Sequence[Artist] = (), most: int = 3, tall: float = 2.1
) -> tuple[Figure, list]:
    """A figure with panels of equal axes, up to `most` in a row, each `tall` inches high; its head has `handles`."""
    wide = min(number, 2 if number == 4 else most)
    rows_of = -(-number // wide)
    tall = max(tall, 2.8) if wide == 1 else tall
    figure = Figure(figsize=(WIDTH, 0.9 + tall * rows_of), layout="constrained")
    panels = list(figure.subplots(rows_of, wide, squeeze=False, sharex=True, sharey=True).flat)
    for unused in panels[number:]:
        unused.remove()
    for last in panels[max(0, number - wide) : number]:
        last.tick_params(labelbottom=True)
    head(figure, subject(rows), handles)
    return figure, panels[:number]


def beside(axes, number: int, of: int, step: float = 4.0, across: bool = True) -> Transform:
    """Data coordinates moved by some points, so that the marks of `of` cells at one place stand beside each other."""
    shift = (number - (of - 1) / 2) * step / 72
    move = (shift, 0) if across else (0, -shift)
    return axes.transData + ScaledTranslation(*move, axes.figure.dpi_scale_trans)


def show_all(axes, *values: Sequence[float]) -> None:
    """Sets the y axis, with its scale, to hold these values: marks that are moved by points have no say in it."""
    known = np.concatenate([np.asarray(one, dtype=float).ravel() for one in values])
    scale = axes.yaxis.get_transform()
    low, high = (end(scale.transform(known[np.isfinite(known)])) for end in (np.min, np.max))
    pad = 0.05 * (high - low) or 0.05
    axes.set_ylim(*scale.inverted().transform(np.array([low - pad, high + pad])))


def fit(axes, scored: pd.DataFrame) -> None:
    """The y axis from 0 to 1 where scores lie there, else as far as means and intervals go."""
    if "perplexity" not in scored and scored["score"].between(0, 1).all():
        axes.set_ylim(-0.04, 1.04)
    else:
        show_all(axes, scored["score"], scored["low"], scored["high"])


def step_of(places: Sequence[float], of: int, width: float, span: float = 100.0) -> float:
    """Points between `of` marks at one place, so that marks at the next place of a panel `width` inches wide are clear.

    Places are sizes, of which those within a point of each other count as one.
    """
    known = np.unique(np.round(np.asarray(places, dtype=float)))
    gap = float(np.diff(known).min()) if len(known) > 1 else span
    return min(6.5, 0.75 * 72 * width * gap / span / max(1, of - 1))


def apart(values: Sequence[float], gap: float, low: float = -np.inf, high: float = np.inf) -> list[float]:
    """Places for labels near these values, no two nearer than `gap` and all within the ends where there is room."""
    order = np.argsort(np.asarray(values, dtype=float), kind="stable")
    groups: list[list[float]] = []  # of labels that touch: the sum of the places they want the first at; their number
    for rank in order:
        groups.append([float(values[rank]), 1])
        while len(groups) > 1 and _start(groups[-1], gap, low, high) < _end(groups[-2], gap, low, high):
            total, number = groups.pop()
            groups[-1][0] += total - number * groups[-1][1] * gap
            groups[-1][1] += number
    placed = [_start(group, gap, low, high) + gap * n for group in groups for n in range(int(group[1]))]
    found = [0.0] * len(placed)
    for rank, place in zip(order, placed, strict=True):
        found[rank] = place
    return found


def _start(group: list[float], gap: float, low: float, high: float) -> float:
    """Where the first label of a group stands: the mean of what its labels want, within the ends."""
    total, number = group
    return float(min(max(total / number, low), max(low, high - gap * (number - 1))))


def _end(group: list[float], gap: float, low: float, high: float) -> float:
    return _start(group, gap, low, high) + gap * group[1]
