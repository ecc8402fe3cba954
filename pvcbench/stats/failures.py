"""Why a cell has no result: out of its method's reach, or failed. In older rows the error's sentence tells which."""

import re
from collections.abc import Iterator

import numpy as np
import pandas as pd

from pvcbench.errors import named_reach

OUT_OF_REACH, FAILED = "out of reach", "failed"
NAMED_FAULT = re.compile(r"[A-Za-z_]\w*: ")  # how the sentence of a failure began in rows of before


def typed(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with `reason` and `reach` where they have none, as rows of before schema 1, by what their sentences say."""
    known = {name: rows[name] if name in rows else pd.Series(index=rows.index, dtype=object) for name in COLUMNS}
    read = rows["error"].map(lambda error: of_sentence(error) if isinstance(error, str) else (None, None))
    told = {name: read.map(lambda pair, place=place: pair[place]) for place, name in enumerate(COLUMNS)}
    return rows.assign(**{name: known[name].where(known[name].notna(), told[name]) for name in COLUMNS})


COLUMNS = ("reason", "reach")


def of_sentence(error: str) -> tuple[str, float | None]:
    """The reason and the reach that an error's sentence tells."""
    return (FAILED if NAMED_FAULT.match(error) else OUT_OF_REACH), named_reach(error)


def reach(cells: pd.DataFrame) -> float | None:
    """The share of the cache, in %, that a method cannot get below, where its rows or cells name one."""
    known = cells["reach"].dropna().astype(float) if "reach" in cells else pd.Series(dtype=float)
    return float(np.mean(100 * known)) if len(known) else None


def without_value(error: object) -> str:
    """A word for a cell without a value whose reach is not known, by what its rows say of it."""
    return OUT_OF_REACH if isinstance(error, str) and of_sentence(error)[0] == OUT_OF_REACH else FAILED


def broken(rows: pd.DataFrame) -> Iterator[tuple[str | None, pd.DataFrame]]:
    """Every method none of whose cells has a value, with its rows that failed; what is out of its reach did not."""
    for method, own in rows.groupby("method", dropna=False, sort=False) if len(rows) else ():
        failed = own[own["reason"] == FAILED]
        if own["error"].notna().all() and len(failed):
            yield None if pd.isna(method) else method, failed
