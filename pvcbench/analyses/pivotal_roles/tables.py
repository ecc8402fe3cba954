"""Tables of the parts of a context: shares by layer, the cost of hiding each, and the test of the claim."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from pvcbench.analyses.common import SHARES, field, groups, intervals, observations, with_ends
from pvcbench.stats.intervals import Bounds

PARTS = {"shared": "shared PvC", "non_shared": "non-shared PvC", "non_pvc": "non-PvC"}
HIDDEN = {"shared": "shared PvC", "shared_no_sinks": "shared PvC, no sinks"} | PARTS
CONTROLLED = ("shared_no_sinks", "non_shared", "non_pvc")
SHARE, HIDING = "entries: {}", "NLL: {} hidden"  # shares of entries; increases in nats per token
OTHERS = {"any": "at least one other row", "mean": "the other rows, mean share"}
DISTANCES = ("next token", "tokens 2-8", "tokens 9 on")
COLUMNS = ("samples", "reading", "quantity", "value", *DISTANCES, "verdict")


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The summary, shares by layer, and what hiding costs by variant and distance.

    In the summary, entries and non-PvC are shares (means over layers), NLL are increases in nats per token, `- control`
    less those of hiding as many entries at random, and what follows is differences of these.
    """
    summary, shares, hiding = [], [], []
    for name, chosen, reading in readings_of(rows):
        head = {"samples": name, "reading": reading}
        summary += [head | line for line in _summary(chosen, reading)]
        shares += [head | line for line in _shares(chosen, reading)]
        hiding += [head | line for line in _hiding(chosen, reading)]
    frame = pd.DataFrame(summary, columns=COLUMNS).fillna("")
    return {"summary": frame, "shares_by_layer": pd.DataFrame(shares), "hiding": pd.DataFrame(hiding)}


def readings_of(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame, str]]:
    """Every group of samples by every reading of the top 80%."""
    for name, chosen in groups(observations(rows)):
        for reading in chosen["observed"].iloc[0]["readings"]:
            yield name, chosen, reading


def increase(rows: pd.DataFrame, reading: str, variant: str) -> np.ndarray:
    """By how much hiding raises the NLL, nats per token: [samples, distances]."""
    return field(rows, "readings", reading, "increase", variant)


def _excess(rows: pd.DataFrame, reading: str, variant: str) -> np.ndarray:
    """The same above what hiding as many entries at random costs."""
    return increase(rows, reading, variant) - increase(rows, reading, f"control_{variant}")


def _summary(rows: pd.DataFrame, reading: str) -> Iterator[dict]:
    clusters = rows["cluster"]

    def shown(values: np.ndarray, bounds: Bounds = None) -> str:
        return with_ends(*(float(end) for end in intervals(values, clusters, bounds)))

    for part, name in PARTS.items():
        values = field(rows, "readings", reading, "entries", part).mean(1)
        yield {"quantity": SHARE.format(name), "value": shown(values, SHARES)}
    for key, name in OTHERS.items():
        values = np.nanmean(field(rows, "readings", reading, "others", key), axis=1)
        yield {"quantity": f"non-PvC that are PvC of {name}", "value": shown(values, SHARES)}
    for variant, name in HIDDEN.items():
        less = variant in CONTROLLED
        values = _excess(rows, reading, variant) if less else increase(rows, reading, variant)
        quantity = HIDING.format(name) + (" - control" if less else "")
        yield {"quantity": quantity} | {at: shown(values[:, place]) for place, at in enumerate(DISTANCES)}
    for quantity, values in _claims(rows, reading).items():
        ends = [float(end) for end in intervals(values, clusters)]
        yield {"quantity": quantity, "value": with_ends(*ends), "verdict": verdict(*ends)}


def _claims(rows: pd.DataFrame, reading: str) -> dict[str, np.ndarray]:
    """What the paper says would make each positive, by sample: next token minus tokens 9 on, both less the control."""
    nearer = {
        part: _excess(rows, reading, part) @ np.array([1.0, 0.0, 0.0]) for part in ("shared_no_sinks", "non_shared")
    }
    further = {part: _excess(rows, reading, part)[:, 2] for part in nearer}
    own, shared = (nearer[part] - further[part] for part in ("non_shared", "shared_no_sinks"))
    return {
        "non-shared: next token - tokens 9 on": own,
        "shared, no sinks: tokens 9 on - next token": -shared,
        "claim: non-shared nearer than shared": own - shared,
    }


def verdict(mean: float, low: float, high: float) -> str:
    """What an interval says of a claim that the mean is above 0; nothing without an interval."""
    if np.isnan(low):
        return ""
    return "supported" if low > 0 else "contradicted" if high < 0 else "not told apart"


def _shares(rows: pd.DataFrame, reading: str) -> Iterator[dict]:
    """By layer: shares of entries and of the last row's attention in each part, and whose PvC non-PvC entries are."""
    layers = rows["observed"].iloc[0]["layers"]
    names = [(quantity, part) for quantity in ("entries", "attention") for part in PARTS]
    for quantity, part in [*names, *(("others", key) for key in OTHERS)]:
        found = intervals(field(rows, "readings", reading, quantity, part), rows["cluster"], SHARES)
        for layer, mean, low, high in zip(layers, *found, strict=True):
            yield {"layer": layer, "quantity": quantity, "of": part, "mean": mean, "low": low, "high": high}


def _hiding(rows: pd.DataFrame, reading: str) -> Iterator[dict]:
    """By variant and distance: the share of entries hidden, the increase of the NLL, the predictions that stay."""
    controls = [f"control_{part}" for part in CONTROLLED]
    for variant in [*HIDDEN, *controls]:
        hidden = field(rows, "readings", reading, "hidden", variant)
        numbers = {"nll_increase": increase(rows, reading, variant)}
        numbers["agreement"] = field(rows, "readings", reading, "agreement", variant)
        if variant in CONTROLLED:
            numbers["increase_less_control"] = _excess(rows, reading, variant)
        clusters, within = rows["cluster"], {"agreement": SHARES}
        ends = {name: intervals(values, clusters, within.get(name)) for name, values in numbers.items()}
        for place, distance in enumerate(DISTANCES):
            line = {"hidden": variant, "hidden_share": float(hidden.mean()), "distance": distance}
            for name, found in ends.items():
                line |= {
                    f"{name}{end}": values[place] for end, values in zip(("", "_low", "_high"), found, strict=True)
                }
            yield line
