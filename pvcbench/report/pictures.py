"""Pictures of the page: needle grids as Plotly figures, and a run's own figures."""

import base64
import html
import json
import tempfile
from pathlib import Path

import pandas as pd
from plotly import graph_objects
from plotly.subplots import make_subplots

from pvcbench.plots import drawn_from
from pvcbench.plots.style import asked, budgets_of
from pvcbench.runs import result
from pvcbench.stats.failures import reach

KINDS = {".svg": "image/svg+xml", ".png": "image/png"}
PANEL, ROW, EDGES = 120, 26, 150  # pixels: a panel's width for one length, a depth's height, what surrounds the panels


def needle_grid(rows: pd.DataFrame) -> dict | None:
    """Mean score by depth and length as a Plotly figure: methods down, budgets across, the full cache beside each."""
    info = rows["sample_info"].map(lambda info: info if isinstance(info, dict) else {})
    rows = rows.assign(depth=info.map(lambda i: i.get("depth")), length=info.map(lambda i: i.get("length")))
    rows = rows[rows["depth"].notna() & rows["length"].notna()]
    if rows.empty or not rows["score"].dropna().astype(float).between(0, 1).all():
        return None
    axes = sorted(rows["length"].unique()), sorted(rows["depth"].unique())
    full, others = rows[rows["reference"]], rows[~rows["reference"]]
    methods, budgets = sorted(others["method"].unique()) or ["full"], budgets_of(rows)
    titles = ["full cache", *(asked(budget) for budget in budgets)]
    panels = make_subplots(
        len(methods), len(titles), shared_xaxes=True, shared_yaxes=True, column_titles=titles,
        horizontal_spacing=0.012, vertical_spacing=0.18 / (len(methods) + 1),
    )  # fmt: skip
    for down, method in enumerate(methods, start=1):
        cells = [others[(others["method"] == method) & (others["budget"] == budget)] for budget in budgets]
        for across, cell in enumerate([full, *cells], start=1):
            panel(panels, cell, axes, (down, across))
        panels.update_yaxes(title_text=f"{html.escape(method)}<br>depth, %", row=down, col=1)
    dress(panels, len(methods), len(titles), axes)
    return json.loads(panels.to_json())


def panel(panels, cell: pd.DataFrame, axes: tuple[list, list], place: tuple[int, int]) -> None:
    """One method at one budget; squares without a score stay grey, a panel without any says why."""
    (lengths, depths), (down, across) = axes, place
    labels = [f"{length:,}" for length in lengths], [f"{depth:g}" for depth in depths]
    values, texts, counts = [], [], []
    for depth in depths:
        squares = [cell[(cell["depth"] == depth) & (cell["length"] == length)] for length in lengths]
        scores = [square["score"].dropna().astype(float) for square in squares]
        values.append([float(found.mean()) if len(found) else None for found in scores])
        texts.append([f"{round(float(found.sum()), 1):g}/{len(found)}" if len(found) else "" for found in scores])
        counts.append([f"{100 * found.mean():.1f}%, n = {len(found)}" if len(found) else "" for found in scores])
    hover = "depth %{y}%, %{x} tokens: %{customdata}<extra></extra>"
    heat = graph_objects.Heatmap(
        x=labels[0], y=labels[1], z=values, text=texts, customdata=counts, texttemplate="%{text}", hovertemplate=hover,
        coloraxis="coloraxis", xgap=1, ygap=1, hoverongaps=False,
    )  # fmt: skip
    panels.add_trace(heat, row=down, col=across)
    good = cell[cell["score"].notna()]
    if good.empty:
        end = reach(cell)
        why = "not asked" if cell.empty else "failed" if end is None else f"out of reach<br>(below {end:.0f}%)"
        middle = {"xref": "x domain", "yref": "y domain", "x": 0.5, "y": 0.5}  # categories here would become numbers
        panels.add_annotation(text=why, showarrow=False, font_size=10, **middle, row=down, col=across)


def dress(panels, tall: int, wide: int, axes: tuple[list, list]) -> None:
    """Size, colours and axes of all panels."""
    across = PANEL if len(axes[0]) < 3 else 44 * len(axes[0])
    panels.update_xaxes(type="category", showgrid=False, zeroline=False, tickfont_size=9)
    panels.update_yaxes(type="category", autorange="reversed", showgrid=False, zeroline=False, tickfont_size=9)
    panels.update_xaxes(title_text="tokens", row=tall)
    panels.update_layout(
        template="none", plot_bgcolor="#E6E6E6", width=EDGES + across * wide,
        height=EDGES + tall * (30 + ROW * len(axes[1])), margin={"l": 90, "r": 10, "t": 40, "b": 60},
        coloraxis={"colorscale": "Viridis", "cmin": 0, "cmax": 1, "colorbar": {"title": "mean score", "len": 0.6}},
        font_size=11,
    )  # fmt: skip


def own_figures(rows: pd.DataFrame, folder: Path) -> list[dict]:
    """The pictures of a run: those in its folder where they show these rows, else drawn for the page alone."""
    own = folder / "figures"
    if drawn_from.fresh(own, drawn_from.data_of(rows)):
        return in_folder(own)
    with tempfile.TemporaryDirectory() as place:
        result.draw(rows, Path(place))
        return in_folder(Path(place))


def in_folder(folder: Path) -> list[dict]:
    """The pictures in a folder, each in the smaller of its formats, as data URIs with a name."""
    found = {}
    for path in sorted(folder.glob("*")):
        if path.suffix in KINDS and (path.stem not in found or path.stat().st_size < found[path.stem].stat().st_size):
            found[path.stem] = path
    return [{"name": name.replace("_", " "), "uri": uri(path)} for name, path in found.items()]


def uri(path: Path) -> str:
    """A file as a data URI."""
    return f"data:{KINDS[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"
