"""Summaries of a run's rows: a line per method and budget, for all samples and for every data set and group."""

import numpy as np
import pandas as pd

from pvcbench.stats import ranking, sizes
from pvcbench.stats.intervals import (
    FEWEST_CLUSTERS,
    LEVEL,
    mean_interval,
    mean_of_strata,
    paired,
    paired_difference,
    pairs,
    unit,
    wilson,
)

NUMBERS = ("kept_bytes", "kept_fraction", "kept_entries", "prompt_tokens", "mib", "full_mib", "prefill_s")
NUMBERS += ("score", "low", "high", "at_worst", "difference", "difference_low", "difference_high", "p", "pairs", "lost")

__all__ = ["FEWEST_CLUSTERS", "LEVEL", "breakdown", "headline", "info", "mean_interval", "mean_of_strata"]
__all__ += ["paired_difference", "pairs", "summarize", "wilson"]


def info(rows: pd.DataFrame, key: str) -> pd.Series:
    """One entry of every row's sample_info; None where it has none."""
    return rows["sample_info"].map(lambda info: info.get(key) if isinstance(info, dict) else None)


def headline(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that the task's overall mean is made of: all, unless samples say which (LongBench: 16 sets of 21)."""
    if "sample_info" not in rows:
        return rows
    chosen = info(rows, "headline").eq(True)
    return rows[chosen] if chosen.any() else rows


def buckets(rows: pd.DataFrame) -> dict[str, pd.Series]:
    """The columns of a data set by whose values its samples are reported apart, by name; of conversations the turn."""
    found = info(rows, "buckets").map(lambda one: one if isinstance(one, dict) else {})
    names = dict.fromkeys(name for one in found for name in one)
    named = {name: found.map(lambda one, name=name: one.get(name)) for name in names}
    turns = info(rows, "turn")
    return named | ({"turn": turns.map(lambda turn: f"{turn:g}", na_action="ignore")} if turns.notna().any() else {})


def divided(rows: pd.DataFrame) -> bool:
    """Whether parts of a run are worth a line each: it has several data sets, or columns that it is reported by."""
    if rows["stratum"].nunique() > 1:
        return True
    if "sample_info" not in rows:
        return False
    return info(rows, "group").nunique() > 1 or any(one.nunique() > 1 for one in buckets(rows).values())


def breakdown(rows: pd.DataFrame) -> pd.DataFrame:
    """Summaries of every stratum, group and bucket of a run and of all together, with `part` and `kind` columns."""
    tables = [summarize(rows).assign(kind="all", part="mean")]
    kinds = {"set": rows["stratum"], "group": info(rows, "group"), "bucket": info(rows, "bucket")} | buckets(rows)
    for kind, labels in kinds.items():
        for label in labels.dropna().unique() if labels.nunique() > 1 else ():
            tables.append(summarize(rows[labels == label]).assign(kind=kind, part=label))
    return pd.concat(tables, ignore_index=True)


def summarize(rows: pd.DataFrame) -> pd.DataFrame:
    """One line per method and budget of one run: measured sizes, score with interval, paired difference to full and p.

    A cell with scores of some of the run's samples only is not `complete`: its mean is over the `samples` it answered
    of the `asked`, the low end of its interval counts the others as the worst score, and `lost` says how many pairs it
    lacks. Cells without a single score stay, with their error; the reference cell comes first.
    """
    rows = sizes.with_bytes(headline(rows.assign(stratum=rows["stratum"].fillna("") if "stratum" in rows else "")))
    done, leaks = rows[ranking.answered(rows)], ranking.leaking(rows)
    reference = done[done["reference"].astype(bool)][["sample", "score", "prompt_sha256"]]
    everyone = rows.drop_duplicates("sample")[["sample", "cluster", "stratum"]]
    bounded = unit(done["score"])  # of the whole run: a cell's own scores may lie in [0, 1] by chance
    worst, lines = 0.0 if bounded else -np.inf, []
    for (method, budget), cell in rows.groupby(["method", "budget"], sort=False):
        good = cell[ranking.answered(cell)]
        line = {"method": method, "budget": budget, "reference": bool(cell["reference"].iloc[0])}
        line |= {"leaks": method in leaks, "samples": len(good), "asked": len(everyone)}
        line["complete"] = len(good) == len(everyone)
        line["errors"] = int(cell["error"].notna().sum())
        line["error"] = cell["error"].dropna().iloc[0] if line["errors"] else None
        line["reach"] = next(iter(cell["reach"].dropna()), None) if "reach" in cell else None
        if len(good):
            line |= _measured(good) | _scored(good, everyone, worst, bounded)
            if not line["reference"] and len(reference):
                columns = ["sample", "score", "prompt_sha256", "cluster", "stratum"]
                line["difference"], interval, line["p"], line["pairs"] = paired(good[columns], reference, bounded)
                line["difference_low"], line["difference_high"] = interval or (np.nan, np.nan)
                line["lost"] = len(everyone) - line["pairs"]
        lines.append(line)
    table = pd.DataFrame(lines)
    for name in NUMBERS:
        if name not in table:
            table[name] = np.nan
    order = table.assign(rank=~table["reference"]).sort_values(["rank", "method", "kept_fraction"], kind="stable")
    return order.drop(columns="rank").reset_index(drop=True)


def _measured(good: pd.DataFrame) -> dict[str, float]:
    """Sizes and time of a cell over the samples it answered; `full_mib` is the full cache's on the same samples."""
    names = ("kept_bytes", "kept_fraction", "kept_entries", "prompt_tokens")
    line = {name: float(good[name].astype(float).mean()) for name in names}
    line |= {"mib": float(good["kv_bytes"].mean()) / 2**20, "full_mib": float(good["full_bytes"].mean()) / 2**20}
    return line | {"prefill_s": float(good["prefill_s"].median())}


def _scored(good: pd.DataFrame, everyone: pd.DataFrame, worst: float, bounded: bool) -> dict[str, float]:
    """The mean score with its interval; `at_worst` is the mean with the samples that lack one counted as the worst."""
    score, (low, high) = mean_of_strata(good["score"], good["stratum"]), _ends_of(good, bounded)
    line = {"score": score, "low": low, "high": high, "at_worst": score}
    if len(good) < len(everyone):
        found = everyone["sample"].map(good.set_index("sample")["score"].astype(float))
        filled = everyone.assign(score=found.astype(float).fillna(worst))
        line["at_worst"] = mean_of_strata(filled["score"], everyone["stratum"])
        line["low"] = _ends_of(filled, bounded)[0] if np.isfinite(worst) else worst
    return line if np.isfinite(high) else line | {"low": np.nan}


def _ends_of(rows: pd.DataFrame, bounded: bool) -> tuple[float, float]:
    return mean_interval(rows["score"], rows["cluster"], rows["stratum"], bounded) or (np.nan, np.nan)
