"""How much of the cache a cell kept, by two measures that every table and figure names.

`kept_bytes` is the share of the full cache's bytes on the same sample, whatever the layers that never evict hold;
`kept_fraction` is the share of entries in the layers that evict. They agree where every layer evicts.
"""

import numpy as np
import pandas as pd

MEASURES = {"kept_bytes": "share of the full cache's bytes", "kept_fraction": "entries in the layers that evict"}
APART = 0.01  # the two measures differ: some layers keep what they hold
OFF = 0.1  # of the size asked for, beyond which the measured one is another size


def with_bytes(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of one run with `full_bytes`, the full cache's on the same sample, and `kept_bytes`; NaN where none."""
    known = rows[rows["reference"].astype(bool) & rows["kv_bytes"].notna()].drop_duplicates("sample")
    whole = rows["sample"].map(known.set_index("sample")["kv_bytes"].astype(float)).astype(float)
    whole = whole.where(whole > 0)
    return rows.assign(full_bytes=whole, kept_bytes=rows["kv_bytes"].astype(float) / whole)


def axis(table: pd.DataFrame) -> str:
    """The measure that sizes are drawn by: bytes, or entries where a scored cell has no full cache beside it."""
    scored = table[table["score"].notna()]
    return "kept_bytes" if scored["kept_bytes"].notna().all() else "kept_fraction"


def label(table: pd.DataFrame) -> str:
    """The axis of measured sizes in words."""
    return f"KV cache kept: {MEASURES[axis(table)]}, %"


def placed(table: pd.DataFrame, fraction: float) -> float:
    """Where a share of entries lies on the axis of sizes, by the line through the cells that were measured."""
    if axis(table) == "kept_fraction":
        return fraction
    known = table[table["score"].notna()]
    x, y = known["kept_fraction"].to_numpy(float), known["kept_bytes"].to_numpy(float)
    if np.ptp(x) < 1e-9:
        return fraction
    slope, start = np.polyfit(x, y, 1)
    return float(start + slope * fraction)
