"""Tables of context redundancy: cost by layer and share, its trend with depth, and the verdict on the claim.

A claim "holds" where the 95% interval over documents lies on its side, "does not hold" where it lies on the other, and
is "not told apart" between; fewer than ten documents or needles give no interval and no word.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from pvcbench.analyses.common import (
    RANKS,
    SHARES,
    depth_trend,
    field,
    groups,
    intervals,
    observations,
    rank_correlation,
    with_ends,
)
from pvcbench.stats.intervals import Bounds

CHEAP = 0.01  # nats per token: what a cut may cost to count as hardly anything
THIRDS = ("first", "middle", "last")


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The summary by group of samples and share, the numbers behind it, and effects by layer."""
    summary, quantities, layers = [], [], []
    for name, chosen in groups(observations(rows)):
        found = list(_quantities(chosen))
        summary += [{"samples": name} | line for line in _summary(chosen, found)]
        quantities += [{"samples": name} | line for line in found]
        layers += [{"samples": name} | line for line in _by_layer(chosen)]
    frame = pd.DataFrame(summary).fillna("")
    return {"summary": frame, "quantities": pd.DataFrame(quantities), "by_layer": pd.DataFrame(layers)}


def verdict(low: float, high: float, bound: float = 0.0) -> str:
    """What an interval says of the claim that a value is below a bound; nothing without an interval."""
    if np.isnan(low):
        return ""
    return "holds" if high < bound else "does not hold" if low > bound else "not told apart"


def loss(rows: pd.DataFrame, kind: str) -> np.ndarray:
    """The share of following tokens whose most likely token changes: [samples, layers, shares]."""
    return 1 - field(rows, kind, "agreement")


def cheap_from(costs: np.ndarray) -> int | None:
    """The first place from which on every cut costs less than CHEAP; None where even the last does not."""
    dear = np.flatnonzero(~(costs < CHEAP))
    first = dear[-1] + 1 if len(dear) else 0
    return int(first) if first < len(costs) else None


def _quantities(rows: pd.DataFrame) -> Iterator[dict]:
    """Every quantity of cuts of one layer at each share, with its interval, and what it says of a claim."""
    nll, agreement, mass = field(rows, "alone", "nll"), loss(rows, "alone"), field(rows, "alone", "mass")
    recent = field(rows, "recent", "nll")
    for place, share in enumerate(setting(rows, "shares")):
        own = nll[..., place]
        trends = {"NLL increase with depth, rho": own, "agreement loss with depth, rho": agreement[..., place]}
        found = {name: (_each(depth_trend, values), 0.0) for name, values in trends.items()}
        lost = 1 - mass[..., place]
        found["NLL increase with attention lost, rho"] = _each(rank_correlation, own, lost), None
        for third, part in zip(THIRDS, np.array_split(own, 3, axis=1), strict=True):
            found[f"NLL increase, {third} third"] = _mean(part), CHEAP if third == "last" else None
        found["NLL increase of the next token"] = _mean(field(rows, "alone", "next")[..., place]), None
        found["agreement"] = 1 - _mean(agreement[..., place]), None
        found["attention left"] = _mean(mass[..., place]), None
        if share in setting(rows, "above"):
            control = recent[..., setting(rows, "above").index(share)]
            found["NLL increase, newest kept less most attended kept"] = _mean(control - own), None
        for name, (values, bound) in found.items():
            mean, low, high = map(float, intervals(values, rows["cluster"], _bounds(name)))
            line = {"kept_share": share, "quantity": name, "mean": mean, "low": low, "high": high}
            yield line | {"verdict": "" if bound is None else verdict(low, high, bound)}


def _bounds(quantity: str) -> Bounds:
    """Between what a quantity lies, by its name."""
    return (
        RANKS if quantity.endswith("rho") else SHARES if quantity in ("agreement", "attention left", "mass") else None
    )


def _each(measure, *values: np.ndarray) -> np.ndarray:
    """A measure of every sample's layers."""
    return np.array([measure(*own) for own in zip(*values, strict=True)])


def _mean(values: np.ndarray) -> np.ndarray:
    """The mean over layers of each sample; NaN where a third has no layer."""
    return values.mean(1) if values.shape[1] else np.full(len(values), np.nan)


SHOWN = {
    "NLL increase with depth, rho": " (claim: below 0)",
    "agreement loss with depth, rho": " (claim: below 0)",
    "NLL increase with attention lost, rho": "",
    "NLL increase, first third": " of layers",
    "NLL increase, middle third": "",
    "NLL increase, last third": f" (claim: below {CHEAP})",
    "NLL increase of the next token": "",
    "agreement": "",
    "attention left": "",
    "NLL increase, newest kept less most attended kept": "",
}


def _summary(rows: pd.DataFrame, found: list[dict]) -> Iterator[dict]:
    """A line per quantity, a column per share of `above` (where there is none: per share)."""
    layers, shares, above = (setting(rows, key) for key in ("layers", "shares", "above"))
    shown, known = above or shares, {(own["quantity"], own["kept_share"]): own for own in found}
    for name, more in SHOWN.items():
        values = {share: _cell(known[name, share]) for share in shown if (name, share) in known}
        if values:
            yield _line(f"{name}{more}", values)
    alone = intervals(field(rows, "alone", "nll"), rows["cluster"])[0]
    worst = {share: np.argsort(-alone[:, shares.index(share)], kind="stable")[:3] for share in shown}
    text = {share: ", ".join(str(layers[place]) for place in places) for share, places in worst.items()}
    yield _line("layers where a cut costs most NLL", text)
    if above:
        mean, _, high = intervals(field(rows, "onward", "nll"), rows["cluster"])
        text = {share: _first(layers, mean[:, place], high[:, place]) for place, share in enumerate(above)}
        yield _line(f"all layers cut for less than {CHEAP}: from layer", text)


def _line(quantity: str, values: dict[float, str]) -> dict:
    return {"quantity": quantity} | {f"{100 * share:g}% kept": text for share, text in values.items()}


def _cell(own: dict) -> str:
    """A quantity with its interval and what it says."""
    shown = with_ends(own["mean"], own["low"], own["high"], 2 if "rho" in own["quantity"] else 3)
    return f"{shown} {own['verdict']}".strip()


def _first(layers: list[int], mean: np.ndarray, high: np.ndarray) -> str:
    """The first layers from which on a cut is cheap, by the mean and by the interval's upper end where there is one."""
    names = ["none" if place is None else str(layers[place]) for place in (cheap_from(mean), cheap_from(high))]
    return names[0] if np.isnan(high).all() else f"{names[0]} (interval: {names[1]})"


def _by_layer(rows: pd.DataFrame) -> Iterator[dict]:
    """Every effect of every kind of cut by layer and share, with its interval."""
    for kind in ("alone", "recent", "onward"):
        shares = setting(rows, "shares" if kind == "alone" else "above")
        effects = ("nll", "next", "agreement") if kind == "onward" else ("nll", "next", "agreement", "mass")
        ends = {name: intervals(field(rows, kind, name), rows["cluster"], _bounds(name)) for name in effects if shares}
        for place, layer in enumerate(setting(rows, "layers")):
            for number, share in enumerate(shares):
                line = {"cut": kind, "layer": layer, "kept_share": share}
                for name, found in ends.items():
                    columns = (name, f"{name}_low", f"{name}_high")
                    line |= {column: values[place, number] for column, values in zip(columns, found, strict=True)}
                yield line


def setting(rows: pd.DataFrame, key: str) -> list:
    """The layers or shares that a group's samples have in common."""
    return rows["observed"].iloc[0][key]
