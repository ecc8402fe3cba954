"""Tables and figures of recent attention consistency: every overlap stands beside what chance reaches."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from pvcbench.analysis import common
from pvcbench.analysis.common import field
from pvcbench.looks import BLACK, BLUE, DASHED, DOTTED, GREEN, GREY, MIXED, ORANGE, PURPLE, RED, SKY

FAMILIES = {"power law": (RED, DASHED), "log-normal": (BLUE, "-"), "exponential": (GREEN, DOTTED)}
PAPER = {"a recent token": (0.86, DASHED), "an ensemble": (0.93, MIXED)}  # PyramidInfer, section 3.2: sets of 80%
SOURCES = (SKY, ORANGE, GREEN, PURPLE, BLUE)  # of ensembles; single tokens are black


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


def figures(rows: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Overlap by distance and by layer, overlap and covered attention ahead, attention by rank."""
    good = common.observations(rows)
    if len(good):
        found = tables(good)
        yield "overlap_by_distance", _distance_figure(good, found["overlap_by_distance"])
        yield "overlap_by_layer", _layer_figure(good, found["overlap_by_layer"])
        for name, label in (("overlap", "later token's set: share held"), ("covered", "later attention: share held")):
            yield f"ahead_{name}", _ahead_figure(good, found["overlap_ahead"], name, label)
        yield "attention_by_rank", _rank_figure(good, found["attention_by_rank"], found["rank_laws"])


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


def _panels(rows: pd.DataFrame, table: pd.DataFrame) -> tuple[Figure, list[tuple]]:
    """A panel for each reading and group of samples: the figure, and (axes, their lines of the table)."""
    names = list(table["reading"].unique())
    order = sorted(table.groupby(["reading", "samples"], sort=False), key=lambda part: names.index(part[0][0]))
    figure, panels = common.canvas(rows, [f"sets of {reading}: {samples}" for (reading, samples), _ in order])
    panels[0].set_ylim(0, 1.02)
    return figure, [(axes, part) for axes, (_, part) in zip(panels, order, strict=True)]


def _draw(axes, x: str, table: pd.DataFrame, value: str, colour: str, line="-", **style) -> None:
    """A line of means with its interval as a band, and what chance reaches as a dotted line."""
    axes.plot(table[x], table[value], color=colour, linestyle=line, **style)
    axes.fill_between(table[x], table[f"{value}_low"], table[f"{value}_high"], color=colour, alpha=0.2, linewidth=0)
    if "chance" in table:
        axes.plot(table[x], table["chance"], color=colour, linestyle=DOTTED, linewidth=1)


def _legend(figure: Figure, axes) -> None:
    axes.plot([], [], color=GREY, linestyle=DOTTED, label="chance, in each line's colour")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)


def _distance_figure(rows: pd.DataFrame, table: pd.DataFrame) -> Figure:
    figure, panels = _panels(rows, table.assign(distance=100 * table["distance"]))
    count = 1 + max(layer for layer in table["layer"] if layer != "mean")
    for axes, part in panels:
        for layer, line in part[part["layer"] != "mean"].groupby("layer"):
            axes.plot(line["distance"], line["overlap"], color=common.layer_colours(count)(layer), linewidth=0.8)
        mean = part[part["layer"] == "mean"]
        _draw(axes, "distance", mean, "overlap", BLACK, label="mean over layers, 95% interval", linewidth=2)
        axes.set(xlabel="distance from the last token, % of the context", ylabel="overlap with its set")
    _legend(figure, panels[0][0])
    common.layer_bar(figure, [axes for axes, _ in panels], count)
    return figure


def _layer_figure(rows: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """Of ensembles with the last token the largest only: the others hold much of it by themselves."""
    figure, panels = _panels(rows, table)
    for axes, part in panels:
        names = list(part["sets"].unique())
        colours = [BLACK, *(SOURCES[n % len(SOURCES)] for n in range(len(names) // 2))]
        for name, colour in [*zip(names, colours, strict=False), (names[-1], RED)]:
            line = part[part["sets"] == name]
            _draw(axes, "layer", line, "overlap", colour, MIXED if colour == RED else "-", label=name)
        for what, (value, line) in PAPER.items() if part["reading"].iloc[0].endswith(" 80%") else ():
            axes.axhline(value, color=GREY, linestyle=line, linewidth=1, label=f"PyramidInfer: {value:.0%} for {what}")
        axes.set(xlabel="layer", ylabel="overlap with the last token's set")
    _legend(figure, panels[0][0])
    return figure


def _ahead_figure(rows: pd.DataFrame, table: pd.DataFrame, value: str, label: str) -> Figure:
    figure, panels = _panels(rows, table)
    for axes, part in panels:
        for (source, line), colour in zip(part.groupby("source", sort=False), [BLACK, *SOURCES * 9], strict=False):
            name = "last token's set" if source == "last" else f"set of {source} recent tokens"
            _draw(axes, "ahead", line, value, colour, label=name, marker="o", ms=3)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(table["ahead"].unique()), sorted(table["ahead"].unique()))
        axes.set(xlabel="later token, counted from the last one of the context", ylabel=label)
    _legend(figure, panels[0][0])
    return figure


def _rank_figure(rows: pd.DataFrame, table: pd.DataFrame, laws: pd.DataFrame) -> Figure:
    """By group: all layers, and a shallow, a middle and a deep one with the mean of each family's fitted lines."""
    parts, count = [], 1 + table["layer"].max()
    for samples, part in table.groupby("samples", sort=False):
        layers = sorted(part["layer"].unique())
        chosen = [layers[int(share * (len(layers) - 1))] for share in (0, 0.5, 1)]
        parts += [(f"{samples}: all layers", part, None)]
        for n in dict.fromkeys(chosen):
            fitted = laws[(laws["samples"] == samples) & (laws["layer"] == n)]
            parts.append((f"{samples}: layer {n}", part[part["layer"] == n], fitted))
    figure, panels = common.canvas(rows, [name for name, *_ in parts])
    for axes, (_, part, fitted) in zip(panels, parts, strict=True):
        if fitted is None:
            for layer, line in part.groupby("layer"):
                axes.plot(line["rank"], line["attention"], color=common.layer_colours(count)(layer), linewidth=0.8)
        else:
            _draw(axes, "rank", part, "attention", BLACK, "", marker="o", ms=2.5, label="measured, 95% interval")
            ranks = part["rank"]  # the last one is the number of entries
            normal = stats.norm.ppf(1 - (ranks - 0.5) / ranks.max())
            for law, x in zip(fitted.itertuples(), (np.log(ranks), normal, ranks), strict=True):
                line, (colour, dashes) = np.exp(law.intercept + law.slope * x), FAMILIES[law.family]
                axes.plot(ranks, line, color=colour, linestyle=dashes, label=f"{law.family}, R² {law.r2:.3f}")
            axes.legend(fontsize=7, loc="lower left")
        axes.set(xscale="log", yscale="log", xlabel="rank of the entry", ylabel="attention of the last token")
        axes.set_ylim(table["attention"].min() / 3, 3)
    common.layer_bar(figure, panels, count)
    return figure
