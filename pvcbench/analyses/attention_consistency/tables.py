"""Tables of recent attention consistency: every overlap stands beside what chance reaches."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from pvcbench.analyses import common
from pvcbench.analyses.common import field

FAMILIES = ("power law", "log-normal", "exponential")


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """`summary`, and by layer, distance, later token and rank: means over samples with 95% intervals."""
    makers = {"summary": _summary, "overlap_by_layer": _by_layer, "overlap_by_distance": _by_distance}
    makers |= {"overlap_ahead": _ahead, "attention_by_rank": _by_rank, "rank_laws": _laws}
    chosen, found = dict(common.groups(common.observations(rows))), {}
    for name, make in makers.items():
        parts = {group: make(part) for group, part in chosen.items()}
        joined = pd.concat(parts, names=["samples"]).reset_index("samples") if parts else pd.DataFrame()
        found[name] = joined.reset_index(drop=True)
    return found


def _shared(rows: pd.DataFrame, key: str) -> list:
    """What all samples of a group have in common: `layers`, `sources`, `ahead`, `distance`, `readings`."""
    return list(rows["observed"].iloc[0][key])


def _table(places: Mapping[str, Sequence], **values) -> pd.DataFrame:
    """A line for every combination of places; a value of three arrays is a mean with its interval's ends."""
    columns = {}
    for name, found in values.items():
        parts = found if isinstance(found, tuple) else (found,)
        columns |= {f"{name}{end}": np.ravel(part) for end, part in zip(("", "_low", "_high"), parts, strict=False)}
    return pd.DataFrame(columns, index=pd.MultiIndex.from_product(places.values(), names=places)).reset_index()


def beyond(reached: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """How much of what chance leaves is reached: 0 is chance, 1 is all; NaN where chance reaches all."""
    left = 1 - chance
    return np.divide(reached - chance, left, out=np.full(np.shape(left), np.nan), where=left > 1e-9)


def _read(rows: pd.DataFrame, key: str) -> np.ndarray:
    """One entry of all readings: [samples, readings, layers, ...]; `size` is what chance reaches of `overlap`."""
    return np.stack([field(rows, "readings", reading, key) for reading in _shared(rows, "readings")], 1)


def _fits(rows: pd.DataFrame, key: str) -> np.ndarray:
    """One number of every family's fit: [samples, families, layers]."""
    return np.stack([field(rows, "power", family, key) for family in FAMILIES], 1)


def winners(fits: np.ndarray) -> np.ndarray:
    """1 for the family of the highest R^2, else 0, NaN without fits: [samples, families, layers], as given."""
    best = (fits == fits.max(1, keepdims=True)).astype(float)
    return np.where(np.isnan(fits).any(1, keepdims=True), np.nan, best)


def _by_layer(rows: pd.DataFrame) -> pd.DataFrame:
    got, chance = (np.moveaxis(_read(rows, key), 3, 2) for key in ("overlap", "size"))
    found, expected = (common.intervals(part, rows["cluster"], common.SHARES) for part in (got, chance))
    over = common.intervals(beyond(got, chance), rows["cluster"])
    places = {"reading": _shared(rows, "readings"), "sets": _shared(rows, "sets"), "layer": _shared(rows, "layers")}
    return _table(places, overlap=found, chance=expected[0], beyond_chance=over)


def _by_distance(rows: pd.DataFrame) -> pd.DataFrame:
    parts = (_read(rows, key) for key in ("bin_overlap", "bin_size"))
    both = [common.intervals(np.insert(part, 0, part.mean(2), 2), rows["cluster"], common.SHARES) for part in parts]
    places = {"reading": _shared(rows, "readings"), "layer": ["mean", *_shared(rows, "layers")]}
    return _table(places | {"distance": _shared(rows, "distance")}, overlap=both[0], chance=both[1][0])


def _later(rows: pd.DataFrame) -> list[np.ndarray]:
    """Means over layers of overlap, covered attention and chance, each [samples, readings, sources, ahead]."""
    found = [_read(rows, f"ahead_{key}").mean(2) for key in ("overlap", "covered")]
    return [*found, np.where(np.isnan(found[0]), np.nan, _read(rows, "source_size").mean(2)[..., None])]


def _ahead(rows: pd.DataFrame) -> pd.DataFrame:
    overlap, covered, chance = (common.intervals(part, rows["cluster"], common.SHARES) for part in _later(rows))
    places = {"reading": _shared(rows, "readings"), "source": _shared(rows, "sources"), "ahead": _shared(rows, "ahead")}
    return _table(places, overlap=overlap, covered=covered, chance=chance[0]).dropna(subset="overlap")


def _by_rank(rows: pd.DataFrame) -> pd.DataFrame:
    ranks = field(rows, "ranks").mean(0)
    found = common.intervals(np.log(field(rows, "power", "values")), rows["cluster"])
    table = _table({"layer": _shared(rows, "layers"), "rank": ranks}, attention=tuple(map(np.exp, found)))
    return table.drop_duplicates(["layer", "rank"])


def _laws(rows: pd.DataFrame) -> pd.DataFrame:
    fits = _fits(rows, "r2")
    values = {key: _fits(rows, key) for key in ("slope", "intercept")} | {"r2": fits, "best": winners(fits)}
    values["r2_of_power_law_less_this"] = fits[:, :1] - fits
    found = {key: common.intervals(value, rows["cluster"]) for key, value in values.items()}
    return _table({"family": list(FAMILIES), "layer": _shared(rows, "layers")}, **found)


def _summary(rows: pd.DataFrame) -> pd.DataFrame:
    """A line per quantity, a column per reading; means over layers, then over samples; chance in parentheses."""
    lines: dict[str, dict[str, str]] = {}

    def add(quantity, column, values, chance=None, bounds=common.SHARES):
        text = common.with_ends(*map(float, common.intervals(values, rows["cluster"], bounds)), digits=2)
        expected = None if chance is None else float(common.intervals(chance, rows["cluster"])[0])
        lines.setdefault(quantity, {})[column] = text if expected is None or not text else f"{text} ({expected:.2f})"

    got, chance, own = (_read(rows, key) for key in ("overlap", "size", "last_size"))
    single = own * np.array([[[observed["entries"]]] for observed in rows["observed"]]) < 1.5
    *later, by_chance = _later(rows)
    had = [(n, t) for n, t in enumerate(_shared(rows, "ahead")) if not np.isnan(by_chance[:, 0, 0, n]).any()]
    for place, reading in enumerate(_shared(rows, "readings")):
        add("size of the last token's set, share of entries", reading, own[:, place].mean(1))
        add("share of layers in which it is one entry", reading, single[:, place].mean(1))
        means = [part[:, place].mean(1) for part in (got, chance)]
        for n, name in enumerate(_shared(rows, "sets")):
            if " with " not in name or name.startswith("all "):
                add(f"overlap with it (chance): {name}", reading, *(part[:, n] for part in means))
        add("a recent token's, beyond chance", reading, beyond(*means)[:, 0], bounds=None)
        trends = [common.depth_trend(value) for value in got[:, place, :, 0]]
        add("a recent token's: rank correlation with depth", reading, np.array(trends), bounds=common.RANKS)
        for source, name in ((0, "last token"), (-1, "all recent tokens")):
            for what, values in zip(("overlap with", "attention held of"), later, strict=True):
                for n, t in had:
                    if t in (1, 8, had[-1][1]):  # the last one that all samples have
                        parts = (part[:, place, source, n] for part in (values, by_chance))
                        add(f"{name}: {what} token +{t} (chance)", reading, *parts)
    fits = _fits(rows, "r2")
    known = {f"fits best in this share of layers: {family}": winners(fits)[:, n] for n, family in enumerate(FAMILIES)}
    known |= {"power law: R²": fits[:, 0], "power law: exponent": -_fits(rows, "slope")[:, 0]}
    known |= {f"R², power law less {name}": fits[:, 0] - fits[:, n] for n, name in enumerate(FAMILIES) if n}
    for quantity, values in known.items():
        bounds = common.SHARES if quantity.startswith("fits") else None
        add(quantity, "attention by rank", pd.DataFrame(values).mean(axis=1).to_numpy(), bounds=bounds)
    return pd.DataFrame.from_dict(lines, orient="index").fillna("").rename_axis("quantity").reset_index()
