"""Tables of attention patterns: how frequent each is by layer, what value norms change, and what a verdict predicts.

`verdict` holds, for every method and budget, Spearman's rho over the heads of a sample (or over its layers) between
what the attention of the prompt's last row says and what eviction does, as means over samples with 95% intervals.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from pvcbench.analyses.attention_patterns.rules import COMPRESSIBLE, PATTERNS, classify
from pvcbench.analyses.common import field, groups, intervals, observations, rank_correlation, with_ends

SUMMARY_TOP = 64  # of the tops measured, the one (or the next larger) that the summary shows


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The summary by layer range, and everything behind it."""
    seen = observations(rows)
    if seen.empty:
        return {"summary": pd.DataFrame()}
    return {
        "summary": summary(seen),
        "patterns": pd.DataFrame(_pattern_lines(seen)),
        "entropy_tokens": entropy_tokens(seen),
        "values": pd.DataFrame(_value_lines(seen)),
        "needle": pd.DataFrame(_needle_lines(seen)),
        "verdict": pd.DataFrame(verdict_lines(rows)),
    }


def patterns_of(rows: pd.DataFrame, kind: str = "last", weighting: str = "attention") -> np.ndarray:
    """The pattern of every head, [samples, layers, heads], as indices into PATTERNS."""
    parts = [field(rows, "rows", kind, weighting, key) for key in ("entropy", "sink", "recent")]
    thresholds = rows["observed"].iloc[0]["thresholds"]
    return classify(*parts, field(rows, "tokens")[:, None, None], thresholds)


def layer_ranges(rows: pd.DataFrame) -> dict[str, np.ndarray]:
    """Layers by name of their range: the first two, then thirds of the others; as places among the observed ones."""
    layers = rows["observed"].iloc[0]["layers"]
    parts = [np.arange(len(layers))[:2], *np.array_split(np.arange(len(layers))[2:], 3)]
    return {f"{layers[part[0]]}-{layers[part[-1]]}": part for part in parts if len(part)}


def kinds_of(rows: pd.DataFrame) -> list[str]:
    """The kinds of query rows that all of these samples have."""
    return [kind for kind in ("last", "mean", "answer") if all(kind in seen["rows"] for seen in rows["observed"])]


def summary(seen: pd.DataFrame) -> pd.DataFrame:
    """One line per group of samples and layer range, for the prompt's last row."""
    lines, top = [], seen["observed"].iloc[0]["top"]
    shown = next((place for place, k in enumerate(top) if k >= SUMMARY_TOP), len(top) - 1)
    for name, rows in groups(seen):
        found, entropy = patterns_of(rows), field(rows, "rows", "last", "attention", "entropy")
        heaviest = field(rows, "rows", "last", "attention", "top")[..., shown]
        for layers, places in layer_ranges(rows).items():
            own = found[:, places]
            line = {"samples": name, "layers": layers}
            line |= {f"{text}, %": round(100 * float((own == i).mean()), 1) for i, text in enumerate(PATTERNS)}
            nats = intervals(entropy[:, places].mean((1, 2)), rows["cluster"])
            line["entropy, nats"] = with_ends(*map(float, nats), digits=2)
            line["exp(H), tokens"] = round(float(np.exp(nats[0])), 1)
            line[f"mass on top {top[shown]}, %"] = round(100 * float(heaviest[:, places].mean()), 1)
            share = intervals(100 * COMPRESSIBLE[own].mean((1, 2)), rows["cluster"])
            lines.append(line | {"compressible, %": with_ends(*map(float, share), digits=1)})
    return pd.DataFrame(lines)


def _ends(line: dict, name: str, values: np.ndarray, clusters: pd.Series) -> dict:
    """A mean and its interval under three keys."""
    mean, low, high = intervals(values, clusters)
    return line | {name: float(mean), f"{name}_low": float(low), f"{name}_high": float(high)}


def _pattern_lines(seen: pd.DataFrame) -> Iterator[dict]:
    """How frequent each pattern is, and what its heads look like: by samples, rows, weighting and layer range."""
    top = seen["observed"].iloc[0]["top"]
    for name, rows in groups(seen):
        for kind, weighting in ((kind, w) for kind in kinds_of(rows) for w in ("attention", "values")):
            found = patterns_of(rows, kind, weighting)
            measured = {
                key: field(rows, "rows", kind, weighting, key) for key in ("entropy", "sink", "recent", "middle", "top")
            }
            for layers, places in layer_ranges(rows).items():
                for number, text in enumerate(PATTERNS):
                    own = found[:, places] == number
                    line = {"samples": name, "rows": kind, "weighting": weighting, "layers": layers, "pattern": text}
                    line = _ends(line, "frequency", own.mean((1, 2)), rows["cluster"])
                    if own.any():
                        line["entropy"] = float(measured["entropy"][:, places][own].mean())
                        line["tokens"] = float(np.exp(line["entropy"]))
                        for key in ("sink", "recent", "middle"):
                            line[key] = float(measured[key][:, places][own].mean())
                        heaviest = measured["top"][:, places][own].mean(0)
                        line |= {f"top_{k}": float(mass) for k, mass in zip(top, heaviest, strict=True)}
                    yield line | {"compressible": bool(COMPRESSIBLE[number])}


def entropy_tokens(seen: pd.DataFrame) -> pd.DataFrame:
    """Entropies, the number of tokens a uniform attention of that entropy is over, and how many heads lie below."""
    lines = []
    for name, rows in groups(seen):
        entropy = field(rows, "rows", "last", "attention", "entropy")
        largest = float(np.log(field(rows, "tokens").max()))
        for nats in [*np.arange(0, largest, 0.5), largest]:
            below = float((entropy <= nats).mean())
            lines.append({"samples": name, "entropy": nats, "tokens": float(np.exp(nats)), "heads_at_or_below": below})
    return pd.DataFrame(lines)


def _value_lines(seen: pd.DataFrame) -> Iterator[dict]:
    """What weighting attention by its values' norms changes: patterns, verdicts, entropy, mass by region."""
    for name, rows in groups(seen):
        for kind in kinds_of(rows):
            plain, valued = patterns_of(rows, kind), patterns_of(rows, kind, "values")
            line = _ends({"samples": name, "rows": kind}, "pattern_changes", _mean(plain != valued), rows["cluster"])
            verdicts = COMPRESSIBLE[plain], COMPRESSIBLE[valued]
            line = _ends(line, "verdict_changes", _mean(verdicts[0] != verdicts[1]), rows["cluster"])
            line = _ends(line, "compressible", _mean(verdicts[0]), rows["cluster"])
            line = _ends(line, "compressible_by_values", _mean(verdicts[1]), rows["cluster"])
            for key in ("entropy", "sink", "recent", "middle"):
                both = [_mean(field(rows, "rows", kind, weighting, key)) for weighting in ("attention", "values")]
                line[key] = float(both[0].mean())
                line = _ends(line, f"{key}_change", both[1] - both[0], rows["cluster"])
            yield line


def _mean(values: np.ndarray) -> np.ndarray:
    """The mean over layers and heads of each sample."""
    return values.mean((1, 2))


def _needle_lines(seen: pd.DataFrame) -> Iterator[dict]:
    """The needle's mass: on average, in the head that has most of it, and how many heads give it a tenth or more."""
    for name, rows in groups(seen):
        for kind in kinds_of(rows):
            for weighting in ("attention", "values"):
                if "needle" not in rows["observed"].iloc[0]["rows"][kind][weighting]:
                    continue
                mass = field(rows, "rows", kind, weighting, "needle")
                line = _ends(
                    {"samples": name, "rows": kind, "weighting": weighting}, "mean", _mean(mass), rows["cluster"]
                )
                line = _ends(line, "best_head", mass.max((1, 2)), rows["cluster"])
                yield _ends(line, "heads_with_a_tenth", _mean(mass >= 0.1), rows["cluster"])


PREDICTORS = ("compressible", "entropy")


def verdict_lines(rows: pd.DataFrame) -> Iterator[dict]:
    """Rank correlations of what the last row's attention says with what each method does at each budget."""
    for name, own in groups(rows[rows["error"].isna()]):
        seen = own[own["method"].isna()]
        if seen.empty:
            continue
        says = dict(zip(seen["sample"], zip(patterns_of(seen), _entropies(seen), strict=True), strict=True))
        for (method, budget), cell in own[own["sample"].isin(says)].groupby(["method", "budget"], sort=False):
            for outcome, level, predictor in _comparisons(cell):
                pairs = [
                    _pair(says[sample], observed, outcome, level, predictor)
                    for sample, observed in zip(cell["sample"], cell["observed"], strict=True)
                ]
                rho = np.array([rank_correlation(*pair) for pair in pairs])
                line = {"samples": name, "method": method, "budget": budget, "outcome": outcome, "over": level}
                line |= {"predictor": predictor, "kept_fraction": float(cell["kept_fraction"].mean())}
                yield _ends(line, "rho", rho, cell["cluster"]) | {"known": int((~np.isnan(rho)).sum())}


def _entropies(seen: pd.DataFrame) -> np.ndarray:
    return field(seen, "rows", "last", "attention", "entropy")


def _comparisons(cell: pd.DataFrame) -> Iterator[tuple[str, str, str]]:
    """Outcome, level and predictor of every comparison that a cell's rows allow."""
    first = cell["observed"].iloc[0]
    outcomes = [f"output error, {kind} row" for kind in first["error"]]
    outcomes += ["needle survival"] if all("survival" in observed for observed in cell["observed"]) else []
    for outcome in outcomes:
        for level in ("heads", "layers"):
            for predictor in PREDICTORS:
                yield outcome, level, predictor


def _pair(says: tuple, observed: dict, outcome: str, level: str, predictor: str) -> tuple[np.ndarray, np.ndarray]:
    """Predictor and outcome of one sample, by head (KV head for survival) or by layer."""
    patterns, entropy = says
    x = COMPRESSIBLE[patterns].astype(float) if predictor == "compressible" else entropy
    if outcome == "needle survival":
        y = np.array(observed["survival"], dtype=float)
        x = x.reshape(*y.shape, -1).mean(-1)  # the query heads that share a KV head
    else:
        y = np.array(observed["error"][outcome.removeprefix("output error, ").removesuffix(" row")], dtype=float)
    return (x, y) if level == "heads" else (x.mean(1), y.mean(1))
