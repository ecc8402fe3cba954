"""Summaries of a run's rows: a line per method and budget, for all samples and for every data set and group."""

import numpy as np
import pandas as pd

from pvcbench.intervals import (
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


def breakdown(rows: pd.DataFrame) -> pd.DataFrame:
    """Summaries of every stratum, group and bucket of a run and of all together, with `part` and `kind` columns."""
    tables = [summarize(rows).assign(kind="all", part="mean")]
    kinds = {"set": rows["stratum"], "group": info(rows, "group"), "bucket": info(rows, "bucket")}
    for kind, labels in kinds.items():
        for label in labels.dropna().unique() if labels.nunique() > 1 else ():
            tables.append(summarize(rows[labels == label]).assign(kind=kind, part=label))
    return pd.concat(tables, ignore_index=True)


def summarize(rows: pd.DataFrame) -> pd.DataFrame:
    """One line per method and budget of one run: measured size, score with interval, paired difference to full and p.

    Cells without a single score stay, with their error; the reference cell comes first.
    """
    rows = headline(rows.assign(stratum=rows["stratum"].fillna("") if "stratum" in rows else ""))
    done = rows[rows["error"].isna()]
    reference = done[done["reference"]][["sample", "score", "prompt_sha256"]]
    lines, bounded = [], unit(done["score"])  # of the whole run: a cell's own scores may lie in [0, 1] by chance
    for (method, budget), cell in rows.groupby(["method", "budget"], sort=False):
        good = cell[cell["error"].isna() & cell["score"].notna()]
        line = {"method": method, "budget": budget, "reference": bool(cell["reference"].iloc[0]), "samples": len(good)}
        line["errors"] = int(cell["error"].notna().sum())
        line["error"] = cell["error"].dropna().iloc[0] if line["errors"] else None
        if len(good):
            line |= {name: float(good[name].mean()) for name in ("kept_fraction", "kept_entries", "prompt_tokens")}
            line["mib"] = float(good["kv_bytes"].mean()) / 2**20
            line["prefill_s"] = float(good["prefill_s"].median())
            line["score"] = mean_of_strata(good["score"], good["stratum"])
            parts = good["score"], good["cluster"], good["stratum"]
            line["low"], line["high"] = mean_interval(*parts, bounded) or (np.nan, np.nan)
            if not line["reference"] and len(reference):
                columns = ["sample", "score", "prompt_sha256", "cluster", "stratum"]
                line["difference"], interval, line["p"], line["pairs"] = paired(good[columns], reference, bounded)
                line["difference_low"], line["difference_high"] = interval or (np.nan, np.nan)
        lines.append(line)
    table = pd.DataFrame(lines)
    columns = ["kept_fraction", "kept_entries", "prompt_tokens", "mib", "prefill_s", "score", "low", "high"]
    columns += ["difference", "difference_low", "difference_high", "p", "pairs"]
    for name in columns:
        if name not in table:
            table[name] = np.nan
    order = table.assign(rank=~table["reference"]).sort_values(["rank", "method", "kept_fraction"], kind="stable")
    return order.drop(columns="rank").reset_index(drop=True)
