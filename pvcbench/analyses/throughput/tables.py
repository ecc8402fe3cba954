"""Tables of speed and memory: medians over repeats, and ratios to the full cache of the same repeat.

`speedup` is the geometric mean of the ratios; its ends are Student's t interval of their logarithms, from three repeats
on. Cells that did not take turns with the full cache (a retry, another day) get the ratio of medians and no interval.
"""

import math

import numpy as np
import pandas as pd
from scipy import stats

from pvcbench.analyses.common import with_ends
from pvcbench.plots.published import beside
from pvcbench.stats.summaries import LEVEL

INTERVALS = "medians of repeats; 95% intervals of ratios to the full cache, repeat by repeat"
MEASURES = ("decode_tokens_per_s", "generated_per_s", "paper_tokens_per_s", "ttft_s", "compress_s", "decode_s")
FEWEST = 3  # repeats that an interval needs
GIB = 2**30


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The summary by setting, method and budget; every measure; the trials of largest batches; published numbers."""
    found = {"summary": summary(rows), "speeds": pd.DataFrame(_speed_lines(rows))}
    trials = pd.DataFrame(_trial_lines(rows))
    theirs = published(rows)
    found |= {} if trials.empty else {"largest_batch": trials}
    return found | ({} if theirs.empty else {"published": theirs})


def setting(row) -> str:
    """What a sample measured, in words."""
    told = row.sample_info
    batch = f"batch {told['batch']}" if isinstance(told["batch"], int) else "largest batch that fits"
    return f"{batch}, {told['prompt']:,} + {told['new_tokens']:,} tokens"


def interval(logs: np.ndarray) -> tuple[float, float, float]:
    """The geometric mean of what these are the logarithms of, and the ends of its 95% interval, NaN below three."""
    mean = float(np.mean(logs))
    if len(logs) < FEWEST:
        return math.exp(mean), math.nan, math.nan
    ends = stats.ttest_1samp(logs, 0.0).confidence_interval(LEVEL) if np.ptp(logs) else (mean, mean)
    return math.exp(mean), *(math.exp(float(end)) for end in ends)


def ratio(row, reference, measure: str) -> tuple[float, float, float]:
    """A measure over the full cache's, with the ends of its interval."""
    if reference is None:
        return math.nan, math.nan, math.nan
    ours, theirs = (np.asarray(one.repeats[measure], dtype=float) for one in (row, reference))
    if row.session != reference.session or len(ours) != len(theirs):
        return float(np.median(ours) / np.median(theirs)), math.nan, math.nan
    return interval(np.log(ours) - np.log(theirs))


def cells(rows: pd.DataFrame):
    """Every row with the row of the full cache on the same sample, None where that failed."""
    for _, own in rows.groupby("sample", sort=False):
        found = list(own.itertuples())
        references = [row for row in found if row.reference and not isinstance(row.error, str)]
        for row in found:
            yield row, (references[0] if references else None)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """A line per setting, method and budget; one without a value has failed, and its row says why."""
    lines = []
    for row, reference in cells(rows):
        line = {"samples": setting(row), "method": row.method, "budget": row.budget}
        if isinstance(row.error, str):
            lines.append(line)
            continue
        found, repeats = row.metrics, row.repeats["decode_tokens_per_s"]
        line |= {"batch": found["batch"], "bytes_%": _bytes_kept(row, reference), "entries_%": 100 * row.kept_fraction}
        line |= {"ttft_s": found["ttft_s"], "decode_tok/s": row.score}
        line["least_to_most"] = f"{min(repeats):.4g} to {max(repeats):.4g}"
        line["speedup"] = _over_full(row, reference, "decode_tokens_per_s")
        line["paper_tok/s"] = found["paper_tokens_per_s"]
        line["paper_speedup"] = _over_full(row, reference, "paper_tokens_per_s")
        peaks = {"prefill_GiB": "prefill_peak_bytes", "decode_GiB": "decode_peak_bytes"}
        line |= {name: math.nan if found[key] is None else found[key] / GIB for name, key in peaks.items()}
        lines.append(line)
    frame = pd.DataFrame(lines)
    return frame.assign(batch=frame["batch"].astype("Int64")) if "batch" in frame else frame


def _bytes_kept(row, reference) -> float:
    """The share of the full cache's bytes in %, for one prompt of each batch; NaN where the full cache failed."""
    if reference is None:
        return math.nan
    ours, theirs = (one.kv_bytes / one.metrics["batch"] for one in (row, reference))
    return 100 * ours / theirs


def _over_full(row, reference, measure: str) -> str:
    """A ratio to the full cache with its interval, as the table shows it."""
    return "1" if row is reference else with_ends(*ratio(row, reference, measure), digits=2)


def _speed_lines(rows: pd.DataFrame):
    """Every measure of every cell that worked: median, ends, mean with interval, and ratio to the full cache."""
    for row, reference in cells(rows[rows["error"].isna()]):
        for measure in MEASURES:
            values = np.asarray(row.repeats[measure], dtype=float)
            line = {"samples": setting(row), "method": row.method, "budget": row.budget, "measure": measure}
            line |= {"repeats": len(values), "median": np.median(values), "least": values.min(), "most": values.max()}
            line |= dict(zip(("mean", "low", "high"), interval(np.log(values)), strict=True))
            yield line | dict(zip(("ratio", "ratio_low", "ratio_high"), ratio(row, reference, measure), strict=True))


def _trial_lines(rows: pd.DataFrame):
    """Every batch that was tried; `settled` says whether the next larger batch was seen not to fit."""
    for row in rows.itertuples():
        search = row.search if isinstance(row.search, dict) else {"tried": []}
        for batch, peak in search["tried"]:
            line = {"samples": setting(row), "method": row.method, "budget": row.budget, "batch": batch}
            line |= {"peak_GiB": math.nan if peak is None else peak / GIB, "limit_GiB": search["limit"] / GIB}
            yield line | {"fits": peak is not None and peak <= search["limit"], "settled": search["settled"]}


def published(rows: pd.DataFrame) -> pd.DataFrame:
    """Published numbers of the same model, batch, prompt and new tokens, each with its source; empty where none are."""
    own = beside(rows)
    if len(own):
        names = {row.sample: setting(row) for row in rows.itertuples()}
        own.insert(0, "samples", own["setting"].map(names))
    return own
