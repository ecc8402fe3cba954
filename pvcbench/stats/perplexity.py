"""Perplexity, bits per byte and likelihood after the budget's position, with intervals over documents, from rows."""

import math
from pathlib import Path

import numpy as np
import pandas as pd

from pvcbench.stats import intervals, summaries
from pvcbench.stats.summaries import info

BLOCK, BLOCKS = 32, 64  # tokens whose likelihood is averaged for the curve over positions; means a curve has at most


def scored(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that carry likelihoods, with `nll` (array, nats per token) and `first`, the first scored position."""
    if "token_nll" not in rows:
        return rows.iloc[:0].assign(nll=None, first=None)
    rows = rows[rows["token_nll"].map(lambda value: isinstance(value, list))]
    nll = rows["token_nll"].map(np.asarray)
    return rows.assign(nll=nll, first=rows["prompt_tokens"] - nll.map(len))


def summarize(rows: pd.DataFrame) -> pd.DataFrame:
    """One line per cell: perplexity, bits per byte, and the mean NLL on tokens after position B, alone and minus full.

    Intervals are those of `intervals.clustered` over documents; the perplexity's are the exponentiated ends of the
    mean NLL's. Position B here means the first token whose query no longer sees everything (B and the tokens between
    evictions later): before it every method equals the full cache. `after_pairs` documents have both.
    """
    known, lines = scored(rows), []
    full = known[known["reference"]].set_index("sample")["nll"]
    for (method, budget), cell in known.groupby(["method", "budget"], sort=False):
        line = {"method": method, "budget": budget}
        clusters = cell["cluster"].to_numpy()
        _put(line, "nll", cell["nll"].map(np.mean), clusters)
        for end in ("", "_low", "_high"):
            line[f"perplexity{end}"] = float(np.exp(line[f"nll{end}"]))
        size = info(cell, "bytes").to_numpy(float)
        _put(line, "bits_per_byte", cell["nll"].map(np.sum) / math.log(2) / size, clusters, size)
        _after_budget(line, cell[cell["sample"].isin(full.index) & cell["budget_entries"].notna()], full)
        lines.append(line)
    return pd.DataFrame(lines)


def _after_budget(line: dict, cell: pd.DataFrame, full: pd.Series) -> None:
    """The mean NLL of tokens after position B, and its difference to the full cache's on the same tokens."""
    after, difference = [], []
    for row in cell.itertuples():
        sample, nll = row.sample, row.nll
        start = max(0, int(row.budget_entries) + row.protocol.get("every", 1) + 1 - row.first)
        after.append(nll[start:].mean() if start < len(nll) else math.nan)
        difference.append(after[-1] - full[sample][start:].mean() if start < len(nll) else math.nan)
    if after and not np.isnan(after).any():
        _put(line, "after", after, cell["cluster"].to_numpy())
        _put(line, "after_difference", difference, cell["cluster"].to_numpy())
        line["after_pairs"] = len(after)


def _put(line: dict, name: str, values, clusters, weights=None) -> None:
    """The weighted mean and its interval under three keys; NaN where there are too few documents."""
    found = intervals.clustered(values, clusters, weights=weights)
    line |= {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}


def block_of(rows: pd.DataFrame) -> int:
    """Tokens averaged in the curve over positions: whole blocks, so many that the longest row makes few enough."""
    longest = int(rows["token_nll"].map(lambda nll: len(nll) if isinstance(nll, list) else 0).max())
    return BLOCK * max(1, -(-longest // (BLOCK * BLOCKS)))


def by_position(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean NLL of blocks of tokens over documents: method, budget, position (of the block's middle), nll."""
    lines, block = [], block_of(rows) if "token_nll" in rows else BLOCK
    for (method, budget), cell in scored(rows).groupby(["method", "budget"], sort=False):
        for first, same in cell.groupby("first"):
            mean = np.mean(np.stack(list(same["nll"])), axis=0)
            for start in range(0, len(mean), block):
                part = mean[start : start + block]
                place = first + start + (len(part) - 1) / 2
                lines.append((method, budget, place, float(part.mean())))
    return pd.DataFrame(lines, columns=["method", "budget", "position", "nll"])


def shown(rows: pd.DataFrame) -> pd.DataFrame:
    """The summary of a run as people read it: for likelihoods the score is the perplexity, bits per byte beside it."""
    table, more = summaries.summarize(rows), summarize(rows)
    if more.empty:
        return table
    table = table.merge(more, on=["method", "budget"], how="left")
    turned = {"nll_difference": "difference", "nll_difference_low": "difference_high"}
    for new, old in (turned | {"nll_difference_high": "difference_low"}).items():
        table[new] = -table[old]
    table = table.assign(difference=math.nan, difference_low=math.nan, difference_high=math.nan)
    high = table["perplexity_high"].where(
        table["complete"] | table["perplexity"].isna(), math.inf
    )  # failures: no bound
    return table.assign(score=table["perplexity"], low=table["perplexity_low"], high=high, perplexity_high=high)


def tables(rows: pd.DataFrame, folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The summary of a run and that of all its parts (itself where it has one data set), which summary.csv gets."""
    summary = shown(rows)
    parts = summaries.breakdown(rows) if summaries.divided(rows) else summary
    parts.to_csv(folder / "summary.csv", index=False, float_format="%.6g")
    return summary, parts
