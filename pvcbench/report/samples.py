"""What the page shows of single samples: prompt excerpt, gold answers, and what became of it in every cell."""

from collections.abc import Mapping

import pandas as pd

from pvcbench.plots.style import asked, in_order
from pvcbench.report.scores import value
from pvcbench.stats import perplexity, sizes

LONGEST = 2000  # characters of an output that the page shows
BYTES = 2**20


def samples_of(rows: pd.DataFrame, excerpts: Mapping[str, Mapping], limit: int) -> dict:
    """The first samples of a run, `cells` (method and budget, reference first), and how many there are in all."""
    rows = sizes.with_bytes(rows.assign(order=~rows["reference"].astype(bool)))
    cells = in_order(rows.sort_values("order", kind="stable"))[["method", "budget"]].drop_duplicates()
    keys = list(cells.itertuples(index=False, name=None))
    samples = list(rows.groupby("sample", sort=False))
    shown = [sample_of(own, excerpts.get(name), keys) for name, own in samples[:limit]]
    labels = [{"method": method, "budget": budget, "asked": asked(budget)} for method, budget in keys]
    return {"cells": labels, "samples": shown, "total": len(samples)}


def sample_of(rows: pd.DataFrame, excerpt: Mapping | None, keys: list[tuple]) -> dict:
    """One sample; `cells` in the order of the keys, None where the run has no row."""
    first = rows.iloc[0]
    own = excerpt is not None and set(rows["prompt_sha256"]) == {excerpt["prompt_sha256"]}
    lines = {(row["method"], row["budget"]): row for row in rows.to_dict("records")}
    nll = dict(list(perplexity.by_position(rows).groupby(["method", "budget"])))
    return {
        "id": str(first["sample"]),
        "info": {name: known for name, known in first["sample_info"].items() if name != "drawn_from"},
        "tokens": int(first["prompt_tokens"]),
        "answers": [str(answer)[:LONGEST] for answer in first["answers"]],
        "prompt": {"question": excerpt["question"], "pieces": excerpt["excerpt"]} if own else None,
        "cells": [row_of(lines[key], nll.get(key)) if key in lines else None for key in keys],
    }


def row_of(row: Mapping, nll: pd.DataFrame | None) -> dict:
    """One sample in one cell; likelihoods as means of blocks of tokens."""
    output = row["output"] if isinstance(row["output"], str) else None
    known = {"score": value(row["score"]), "error": row["error"] if isinstance(row["error"], str) else None}
    known |= {"output": None if output is None else output[:LONGEST], "cut": len(output or "") > LONGEST}
    known |= {"metrics": {name: one if isinstance(one, str) else value(one) for name, one in row["metrics"].items()}}
    known |= {"kept": value(row["kept_bytes"], 100), "share": value(row["kept_fraction"], 100)}
    known["entries"] = value(row["kept_entries"])
    known |= {"mib": value(row["kv_bytes"], 1 / BYTES), "prefill_s": value(row["prefill_s"])}
    known["decode_s"] = value(row["decode_s"])
    spans = row["spans_kept"] if isinstance(row["spans_kept"], dict) else {}
    known["spans"] = {name: [value(share, 100) for share in layers] for name, layers in spans.items()}
    if nll is not None:
        known["nll"] = {name: [value(number) for number in nll[name]] for name in ("position", "nll")}
    return known
