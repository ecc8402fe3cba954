"""What a reader must know before the numbers of a run, in sentences: tables, figures and the report all say the same.

cautions.of(rows, likelihood.shown(rows))
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from pvcbench.plots.style import amount, asked
from pvcbench.stats import floor, ranking, sizes, summaries

THINKING = "set model.thinking=false, or allow more tokens (task.max_new_tokens=...)"
LOOK = "look at the prompts and answers (pvcbench report) before you use these numbers"
EASIER = "Look at its answers (pvcbench report): an easier task, other prompts or another model may show more."


def of(rows: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    """Everything to say of a run with scores, the loud first; `table` is its summary as people read it."""
    cells = [*incomplete(table), *on_shared_samples(rows, table)]
    return [*loud(rows), *weak_sets(rows), *cells, *two_measures(table), *other_sizes(table)]


def loud(rows: pd.DataFrame) -> list[str]:
    """Where the full cache answers next to nothing, and what to do about it."""
    (empty, thinking, total), whole = floor.silence(rows), floor.sentence(rows)
    said = []
    if thinking:
        said.append(f"{thinking} of {total} answers of the full cache stop inside the model's thinking: {THINKING}.")
    if empty:
        said.append(f"{empty} of {total} answers of the full cache are empty: {LOOK}.")
    return said + ([] if whole is None else [f"{whole}. {'' if said else EASIER}".rstrip()])


def weak_sets(rows: pd.DataFrame) -> list[str]:
    """The data sets that the full cache itself cannot do, in a run that it can do as a whole."""
    if floor.sentence(rows) is not None:
        return []
    sets = ", ".join(f"{name} ({counts})" for name, counts in floor.sets(rows).items())
    return [f"Data sets of which the full cache itself answers fewer than half say little: {sets}."] if sets else []


def incomplete(table: pd.DataFrame) -> list[str]:
    """Cells with a score of some samples only, a sentence for each method and reason."""
    found: dict[tuple, list[str]] = {}
    for line in table[~table["complete"] & (table["samples"] > 0)].itertuples():
        unmeasured = line.asked - line.samples - line.errors
        why = [f"{line.errors} failed ({line.error})"] if line.errors else []
        why += [f"{unmeasured} have no row"] if unmeasured else []
        key = line.method, f"{line.samples} of {line.asked} samples have a score, {' and '.join(why)}"
        found.setdefault((*key, _meaning(line, table)), []).append(asked(line.budget))
    return [f"{name} at {', '.join(at)} is incomplete: {why}. {so}" for (name, why, so), at in found.items()]


def _meaning(line, table: pd.DataFrame) -> str:
    """What follows for an incomplete cell."""
    if line.reference:
        return "Without the full cache on every sample nothing is tested against it."
    bounded = "perplexity" not in table and np.isfinite(line.at_worst)
    low = ", its interval begins as if the others were 0" if bounded else ""
    return f"The mean is of those alone{low}; it is ranked and tested nowhere."


def on_shared_samples(rows: pd.DataFrame, table: pd.DataFrame) -> Iterator[str]:
    """Scores and sizes of every cell beside an incomplete one, on the samples that all of them answered."""
    rows = sizes.with_bytes(summaries.headline(rows))
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
    mean, mib = summaries.mean_of_strata(cell["score"], cell["stratum"]), float(cell["kv_bytes"].mean()) / 2**20
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
