"""What a reader must know before the numbers of a run, in sentences: tables, figures and the report all say the same.

cautions.of(rows, likelihood.shown(rows))
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from pvcbench import floor, ranking, sizes, stats
from pvcbench.looks import amount, asked

THINKING = "set model.thinking=false, or allow more tokens (task.max_new_tokens=...)"
EMPTY = "look at a prompt and its answers (the report's samples) before you use these numbers"


def of(rows: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    """Everything to say of a run with scores; `table` is its summary as people read it."""
    first = [*loud(rows), *floors(rows), *incomplete(table), *on_shared_samples(rows, table)]
    return [*first, *two_measures(table), *other_sizes(table)]


def loud(rows: pd.DataFrame) -> list[str]:
    """What went wrong with the full cache's own answers, and what to do about it."""
    empty, thinking, total = floor.silence(rows)
    said = []
    if thinking:
        said.append(f"{thinking} of {total} answers of the full cache stop inside the model's thinking: {THINKING}.")
    if empty:
        said.append(f"{empty} of {total} answers of the full cache are empty: {EMPTY}.")
    return said


def floors(rows: pd.DataFrame) -> list[str]:
    """The run, or some of its data sets, that the full cache itself cannot do."""
    whole = floor.sentence(rows)
    if whole is not None:
        return [f"{whole}."]
    sets = ", ".join(f"{name} ({counts})" for name, counts in floor.sets(rows).items())
    return [f"Data sets of which the full cache itself answers fewer than half say little: {sets}."] if sets else []


def incomplete(table: pd.DataFrame) -> Iterator[str]:
    """Cells with a score of some samples only."""
    for line in table[~table["complete"] & (table["samples"] > 0)].itertuples():
        name = line.method if line.reference else f"{line.method} at {asked(line.budget)}"
        why = f"{line.errors} failed ({line.error})" if line.errors else ""
        unmeasured = line.asked - line.samples - line.errors
        why = "; ".join([*filter(None, [why]), *([f"{unmeasured} have no row"] if unmeasured else [])])
        yield f"{name} is incomplete, {line.samples} of {line.asked} samples: {why}. {_meaning(line, table)}"


def _meaning(line, table: pd.DataFrame) -> str:
    """What follows for an incomplete cell."""
    if line.reference:
        return "Without the full cache on every sample nothing is tested against it."
    low = (
        "" if "perplexity" in table or not np.isfinite(line.at_worst) else ", and its interval begins as if they were 0"
    )
    return f"Its mean is of the others alone{low}; it is ranked and tested nowhere."


def on_shared_samples(rows: pd.DataFrame, table: pd.DataFrame) -> Iterator[str]:
    """Scores and sizes of every cell beside an incomplete one, on the samples that all of them answered."""
    rows = sizes.with_bytes(stats.headline(rows))
    for budget, own in ranking.beside_incomplete(rows, table):
        at, number = asked(budget), own["sample"].nunique()
        if not number:
            yield f"At {at} no sample was answered by every method: nothing can be compared there."
            continue
        cells = [_cell(name, cell, table) for name, cell in own.groupby("method", sort=False)]
        some = f"{number} samples" if number > 1 else "1 sample"
        yield f"At {at}, on the {some} that every method answered: {'; '.join(cells)}."


def _cell(name: str, cell: pd.DataFrame, table: pd.DataFrame) -> str:
    """A method's mean and size on some samples, in words."""
    mean, mib = stats.mean_of_strata(cell["score"], cell["stratum"]), float(cell["kv_bytes"].mean()) / 2**20
    if "perplexity" in table:
        score = f"perplexity {np.exp(-mean):.2f}"
    else:
        score = f"{100 * mean:.1f}" if table["at_worst"].dropna().between(0, 1).all() else f"{mean:.4g}"
    return f"{name} {score} ({mib:.1f} MiB)"


def two_measures(table: pd.DataFrame) -> list[str]:
    """Where layers that never evict make the cache larger than the budget says."""
    known = table[(table["samples"] > 0) & table["kept_bytes"].notna()]
    apart = known[(known["kept_bytes"] - known["kept_fraction"]).abs() > sizes.APART]
    if apart.empty:
        return []
    one = apart.sort_values("kept_fraction").iloc[0]
    entries, whole = (f"{100 * one[name]:.1f}%" for name in ("kept_fraction", "kept_bytes"))
    where = f"{one['method']} at {asked(one['budget'])} keeps {entries} of the entries in the layers that evict"
    return [f"Some layers never evict: {where}, and {whole} of the full cache's bytes."]


def other_sizes(table: pd.DataFrame) -> list[str]:
    """Sizes that are more than a tenth off the size asked for."""
    found = []
    for budget, cells in table[(table["samples"] > 0) & ~table["reference"].astype(bool)].groupby("budget", sort=False):
        wanted, entries = amount(budget), budget.isdigit()
        if wanted is None:
            continue
        kept = cells.set_index("method")["kept_entries" if entries else "kept_fraction"].astype(float)
        off = kept[(kept - wanted).abs() > sizes.OFF * wanted]
        each = ", ".join(f"{name} kept {one:.0f}" if entries else f"{name} kept {one:.1%}" for name, one in off.items())
        found += [f"of {asked(budget)} asked {each}"] if each else []
    told = "Sizes more than a tenth off what was asked, in entries of the layers that evict"
    return [f"{told}: {'; '.join(found)}."] if found else []
