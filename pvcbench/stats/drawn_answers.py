"""Answers that were drawn, or are long: avg@n and pass@k of every cell, and how long, cut or looping its answers are.

avg@n is the mean over a problem's n answers, then over problems. pass@k is the chance that one of k answers is right,
estimated from n as 1 - C(n - c, k) / C(n, k) with c right ones (Chen et al. 2021, arXiv 2107.03374, equation 1), and
the mean over problems. Right is an answer with the full score, 1. Intervals take a problem's answers together.
"""

from math import comb

import numpy as np
import pandas as pd

from pvcbench.stats.intervals import mean_interval, mean_of_strata
from pvcbench.stats.sizes import with_bytes

KS = (1, 2, 4, 8, 16, 32, 64)


def pass_at(answers: int, right: int, k: int) -> float:
    """The estimated chance that one of k answers is right, where so many of all answers were."""
    if not 1 <= k <= answers or not 0 <= right <= answers:
        raise ValueError(f"pass@{k} needs at least {k} answers and cannot be had of {right} right ones of {answers}")
    return 1 - comb(answers - right, k) / comb(answers, k)


def worth_a_table(rows: pd.DataFrame) -> bool:
    """Whether a run's answers are drawn, stopped where they repeat, or written while the cache is held."""
    if "answer_tokens" not in rows or "protocol" not in rows:
        return False
    asked = rows["protocol"].map(lambda one: {"sampling", "stop_repeats"} & one.keys() or one.get("decode") == "hold")
    return bool(rows["answer_tokens"].notna().any() and asked.astype(bool).any())


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """A line per method and budget: its problems, answers to each, avg@n, pass@k with their intervals, and lengths.

    A problem whose answers are not all there counts with those that are missing as wrong ones, and `lost` counts them.
    """
    rows = with_bytes(rows.assign(stratum=rows["stratum"].fillna("") if "stratum" in rows else ""))
    problem = rows["problem"].where(rows["problem"].notna(), rows["sample"]) if "problem" in rows else rows["sample"]
    rows = rows.assign(problem=problem)
    each = rows.drop_duplicates("sample").groupby("problem").size()
    lines = []
    for (method, budget), cell in rows.groupby(["method", "budget"], sort=False):
        good = cell[cell["error"].isna() & cell["score"].notna()]
        line = {"method": method, "budget": budget, "problems": len(each), "answers": int(each.min())}
        line |= {"lost": int(each.sum()) - len(good)}
        if len(good):
            line |= {"kept_bytes": float(good["kept_bytes"].astype(float).mean())} | _scored(cell, good, each)
            line |= {name: float(good[of].astype(float).mean()) for name, of in LENGTHS.items() if of in good}
        lines.append(line)
    return pd.DataFrame(lines)


LENGTHS = {"tokens": "answer_tokens", "truncated": "truncated", "looping": "looping", "peak": "decoding_entries_peak"}


def _scored(cell: pd.DataFrame, good: pd.DataFrame, each: pd.Series) -> dict[str, float]:
    """avg@n and every pass@k that all problems have answers for, with intervals; single answers are scored alone."""
    known = cell.drop_duplicates("problem").set_index("problem")[["cluster", "stratum"]]
    if not good["score"].astype(float).between(0, 1).all():
        return {}
    sums = good.groupby("problem")["score"].sum().reindex(known.index, fill_value=0.0).astype(float)
    right = good["score"].astype(float).eq(1).groupby(good["problem"]).sum().reindex(known.index, fill_value=0)
    wanted = each.reindex(known.index)
    found = {f"avg@{int(each.min())}": sums / wanted}
    for k in KS if each.min() > 1 else ():
        if k <= each.min():
            values = [pass_at(int(n), int(c), k) for n, c in zip(wanted, right, strict=True)]
            found[f"pass@{k}"] = pd.Series(values, index=known.index)
    line = {}
    for name, values in found.items():
        low, high = mean_interval(values, known["cluster"], known["stratum"], True) or (np.nan, np.nan)
        line |= {name: mean_of_strata(values, known["stratum"]), f"{name}_low": low, f"{name}_high": high}
    return line
