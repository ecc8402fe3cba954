"""How docs/results/scale.md's numbers are written and drawn: units, Markdown tables between markers, two figures."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from pvcbench.errors import UserError
from pvcbench.plots.canvas import apart, head
from pvcbench.plots.style import BLACK, BLUE, DASHED, GREEN, GREY, MIXED, ORANGE, PURPLE, RED, SKY

UNITS = {"d": 86400, "h": 3600, "min": 60, "s": 1, "ms": 1e-3, "µs": 1e-6}
KINDS = {"prefill": (BLUE, "o"), "step": (RED, "s"), "fork": (GREEN, "^")}
ROLES = {"fit": "fitted on", "check": "not fitted on"}
LINES = {
    "plain": (BLACK, "-"),
    "a window of 32 rows": (PURPLE, DASHED),
    "every row": (BLUE, MIXED),
    "PvC at 50%": (RED, "-"),
}
SHADES = (SKY, GREEN, BLUE, ORANGE, RED)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, columns that begin with a digit to the right."""
    lines = [head, ["---:" if first[:1].isdigit() else "---" for first in rows[0]], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def spell(value: float) -> str:
    """Seconds in the unit that reads best, three figures."""
    unit = next((unit for unit, size in UNITS.items() if value >= (2 if size > 1 else 0.9995) * size), "µs")
    amount = value / UNITS[unit]
    return f"{amount:,.0f} {unit}" if amount >= 100 else f"{amount:.3g} {unit}"


def pace(term: str, own: float) -> str:
    """Seconds per unit as units per second; of a layer's call as they are."""
    if not own:
        return "none"
    if term.endswith("call"):
        return spell(own)
    unit = "Gflop/s" if term.endswith(("flop", "product")) else "G entries/s" if term.endswith("entry") else "GB/s"
    return f"{1e-9 / own:.3g} {unit}"


def gib(amount: float) -> str:
    """Bytes as GiB, three figures."""
    return f"{amount / 2**30:,.0f}" if amount >= 100 * 2**30 else f"{amount / 2**30:.3g}"


def filled(text: str, parts: Mapping[str, str], name: str) -> str:
    """A document with parts between its markers, `<!-- NAME -->` and `<!-- end NAME -->`; every marker must be met."""
    if set(re.findall(r"<!-- (?!end )([\w ]+) -->", text)) != set(parts):
        raise UserError(f"{name} must have exactly the markers {', '.join(parts)}")
    for part, inner in parts.items():
        start, end = f"<!-- {part} -->\n", f"<!-- end {part} -->"
        head, _, rest = text.partition(start)
        _, found, tail = rest.partition(end)
        if not found:
            raise UserError(f"{name} has no marker {end}")
        text = f"{head}{start}{inner}\n{found}{tail}"
    return text


def fill(path: Path, parts: Mapping[str, str]) -> None:
    """Puts parts between the markers of a file."""
    path.write_text(filled(path.read_text(encoding="utf-8"), parts, path.name), encoding="utf-8")


def check_figure(points: Sequence[tuple[str, str, float, float, float, float]], title: str) -> Figure:
    """Predicted against measured seconds: (kind, role, median, least, most, predicted) of each point."""
    figure = Figure(figsize=(5.6, 5.0), layout="constrained")
    axes = figure.subplots()
    for kind, (colour, marker) in KINDS.items():
        for role, face in (("fit", "white"), ("check", colour)):
            own = [point[2:] for point in points if point[:2] == (kind, role)]
            if own:
                median, least, most, said = zip(*own, strict=True)
                bars = [[m - low for m, low in zip(median, least)], [high - m for m, high in zip(median, most)]]  # noqa: B905
                style = {"color": colour, "markerfacecolor": face, "label": f"{kind}, {ROLES[role]}", "markersize": 5}
                axes.errorbar(median, said, xerr=bars, fmt=marker, linewidth=0.8, **style)
    ends = [min(min(p[2], p[5]) for p in points) / 2, max(max(p[2], p[5]) for p in points) * 2]
    axes.plot(ends, ends, color=GREY, linewidth=0.8)
    within = [end / 1.25 for end in ends], [1.25 * end for end in ends]
    axes.fill_between(ends, *within, color=GREY, alpha=0.15, linewidth=0, label="at most a quarter off")
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    axes.set(xlabel="measured, seconds (median, with smallest and largest)", ylabel="predicted, seconds")
    head(figure, title, axes.get_legend_handles_labels()[0])
    return figure


def length_figure(
    prefills: Mapping[str, Sequence[tuple[int, float]]],
    steps: Mapping[str, Sequence[tuple[int, float, float]]],
    title: str,
) -> Figure:
    """Prefill seconds by way of observing, (tokens, seconds); steps by shape, (tokens, full, a tenth of the cache).

    Names stand at the ends of their lines, which tells them apart without colours.
    """
    figure = Figure(figsize=(7.2, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, line in prefills.items():
        colour, style = LINES[name]
        left.plot(*zip(*line, strict=True), color=colour, linestyle=style, linewidth=1.3)
    _named(left, {name: (line[-1], LINES[name][0]) for name, line in prefills.items()})
    left.set(xlabel="prompt, tokens", ylabel="prefill, seconds", title="Llama-3-8B, one prompt")
    for colour, line in zip(SHADES, steps.values(), strict=True):
        tokens, full, tenth = zip(*line, strict=True)
        right.plot(tokens, full, color=colour, linewidth=1.3)
        right.plot(tokens, tenth, color=colour, linestyle=DASHED, linewidth=1.3)
    ends = zip(SHADES, steps.items(), strict=True)
    _named(right, {name: ((line[-1][0], line[-1][1]), colour) for colour, (name, line) in ends})
    right.set(xlabel="prompt, tokens", ylabel="one step, seconds", title="full cache; dashed: a tenth of it")
    head(figure, title)
    return figure


def _named(axes, ends: Mapping[str, tuple]) -> None:
    """Makes both axes logarithmic and puts names behind the last points of lines; the x axis makes room for them."""
    axes.set(xscale="log", yscale="log")
    first, last = axes.dataLim.intervalx
    axes.set_xlim(first / 1.5, last * (last / first) ** (0.027 * max(map(len, ends))))
    axes.set_xticks([10**power for power in range(math.ceil(math.log10(first / 1.5)), int(math.log10(last)) + 1)])
    axes.xaxis.set_minor_locator(NullLocator())
    heights = apart([math.log10(point[1]) for point, _ in ends.values()], 0.06 * _decades(axes))
    for height, (name, (point, colour)) in zip(heights, ends.items(), strict=True):
        axes.text(1.3 * point[0], 10**height, name, color=colour, fontsize=7.5, va="center")


def _decades(axes) -> float:
    """How many powers of ten an axis of positive values spans."""
    low, high = axes.dataLim.intervaly
    return math.log10(high / low)
