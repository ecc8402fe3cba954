"""The tables of a paper, as Markdown and as LaTeX (booktabs), each with the hash of its data in a comment."""

import math

import pandas as pd

from pvcbench.plots import cautions, drawn_from
from pvcbench.plots.style import HOLM_NOTE, asked, in_order, measured, metric
from pvcbench.stats import floor, sizes, summaries
from pvcbench.stats.significance import ALPHA, TEST

LATEX = str.maketrans({"_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$"})
LATEX |= str.maketrans({"{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"})
LATEX |= str.maketrans({"\\": r"\textbackslash{}"})
NO_VALUE = "-"
SIZES = (
    f"bytes: {sizes.MEASURES['kept_bytes']}, sample by sample; entries: {sizes.MEASURES['kept_fraction']}, of the "
    "compressed part's; MiB of a cell with some samples only: of the full cache's on the same ones."
)


def scores(rows: pd.DataFrame, compared: pd.DataFrame, published: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The table of a scored run: method by size, score and difference to full with intervals; and its notes."""
    nll, share = "perplexity" in compared, rows["score"].dropna().astype(float).between(0, 1).all()
    scale, digits = (100, 1) if share and not nll else (1, 2)
    label = "perplexity" if nll else metric(rows) + (", %" if scale == 100 else "")
    kind, heading = ("nll_difference", "NLL - full") if nll else ("difference", "minus full")
    lines, lost, hidden = [], {}, floor.sentence(rows) is not None
    for line in in_order(compared).itertuples():
        cell = {"method": line.method, "asked": "all" if line.reference else asked(line.budget)} | sizes_of(line)
        cell[label] = _ends(line.score, line.low, line.high, scale, digits)
        ends = [getattr(line, f"{kind}{end}", float("nan")) for end in ("", "_low", "_high")]
        cell[heading] = _ends(*ends, scale, 3 if nll else digits, sign=True) if not line.reference else ""
        if hidden and floor.unseen(*ends):
            cell[heading] = floor.WORD
        cell[heading] += "*" if line.p_holm < ALPHA else ""
        cell["p (Holm)"] = "" if line.reference or pd.isna(line.p_holm) else _probability(line.p_holm)
        if len(published):
            theirs = published[(published["method"] == line.method) & (published["budget"] == line.budget)]
            cell["published"] = "; ".join(f"{one.score:g}" for one in theirs.itertuples())
        lines.append(cell)
        if not line.samples:
            why = f"{line.errors} of {line.asked} samples have no value: {line.error}"
            lost.setdefault((line.method, why), []).append(asked(line.budget))
    notes = [measured(rows).replace("\n", "; "), *cautions.of(rows, compared), SIZES, _method_note(compared)]
    notes += [f"{method} at {', '.join(budgets)}: {why}." for (method, why), budgets in lost.items()]
    notes += [f"Published: {source}." for source in (published["source"].unique() if len(published) else ())]
    return pd.DataFrame(lines), notes


def sizes_of(line) -> dict[str, str]:
    """Both measured shares of a cell, its bytes and its samples; what is of some samples only says of how many."""
    cell = {"bytes, %": NO_VALUE, "entries, %": NO_VALUE, "MiB": NO_VALUE, "n": str(line.samples)}
    if line.samples:
        shares = {"bytes, %": line.kept_bytes, "entries, %": line.kept_fraction}
        cell |= {name: NO_VALUE if pd.isna(one) else f"{100 * one:.1f}" for name, one in shares.items()}
        cell["MiB"] = f"{line.mib:.1f}"
    if line.samples and not line.complete:
        cell["MiB"] += "" if line.reference or pd.isna(line.full_mib) else f" of {line.full_mib:.1f}"
        cell["n"] += f" of {line.asked}"
    return cell


def by_set(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The scores of every data set, a column each, and their mean; summary.csv in a run's folder has the intervals."""
    parts = summaries.breakdown(summaries.headline(rows))
    share = rows["score"].dropna().astype(float).between(0, 1).all()
    scale, digits = (100, 1) if share else (1, 2)
    lines = []
    for line in in_order(parts[parts["kind"] == "all"]).itertuples():
        own = parts[(parts["method"] == line.method) & (parts["budget"] == line.budget)]
        cell = {"method": line.method, "asked": "all" if line.reference else asked(line.budget)}
        for kind in ("set", "all"):
            found = own[own["kind"] == kind]
            cell |= {one.part: _part(one, scale, digits) for one in found.itertuples()}
        lines.append(cell)
    notes = [measured(rows).replace("\n", "; "), "Per cent." if scale == 100 else "Scores."]
    notes += [*cautions.loud(rows), *cautions.weak_sets(rows), *cautions.incomplete(parts[parts["kind"] == "all"])]
    return pd.DataFrame(lines).fillna(NO_VALUE), notes


def _part(line, scale: float, digits: int) -> str:
    """A data set's score; of some of its samples it says of how many."""
    text = _ends(line.score, math.nan, math.nan, scale, digits)
    return text if line.complete or not line.samples else f"{text} ({line.samples} of {line.asked})"


def _method_note(compared: pd.DataFrame) -> str:
    number = int(compared["p_holm"].notna().sum())
    if not number:
        return "Brackets: 95% intervals. No tests: fewer than ten clusters, or no full cache or cell with every sample."
    return (
        "Brackets: 95% intervals, paired by sample for differences. * differs from the full cache at 5% after Holm's "
        f"correction over the {number} comparisons of this table. {TEST}. {HOLM_NOTE}"
    )


def _ends(value: float, low: float, high: float, scale: float, digits: int, sign: bool = False) -> str:
    """A number and its interval, or a dash."""
    if value is None or pd.isna(value):
        return NO_VALUE
    told = [f"{scale * one:{'+' if sign else ''}.{digits}f}".replace("inf", "∞") for one in (value, low, high)]
    return told[0] if pd.isna(low) else f"{told[0]} [{told[1]}, {told[2]}]"


def _probability(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def plain(frame: pd.DataFrame) -> pd.DataFrame:
    """Any frame as text: numbers with four significant digits, nothing where there is no value."""
    shown = frame.map(lambda one: "" if pd.isna(one) else f"{one:.4g}" if isinstance(one, float) else str(one))
    return shown.rename(columns=lambda name: str(name).replace("_", " "))


def markdown(frame: pd.DataFrame, notes: list[str], title: str, data: str) -> str:
    """A Markdown document of one table: its hash, title, lines and notes."""
    right = [frame[name].str.match(r"[-+<]?\d").any() for name in frame.columns]
    head = [" | ".join(frame.columns), " | ".join("---:" if one else "---" for one in right)]
    body = [" | ".join(cell.replace("|", r"\|") for cell in line) for line in frame.itertuples(index=False)]
    table = "\n".join(f"| {line} |" for line in [*head, *body])
    more = "".join(f"\n{note}\n" for note in notes)
    return f"<!-- {drawn_from.KEY}: {data} -->\n\n# {title}\n\n{table}\n{more}"


def latex(frame: pd.DataFrame, notes: list[str], title: str, data: str) -> str:
    """A LaTeX table for the booktabs package, with its hash, its caption and a label."""
    caption = " ".join(f"{one.rstrip('.')}." for one in (title, *notes)).translate(LATEX)
    name = "".join(one if one.isalnum() else "-" for one in title)
    right = [frame[column].str.match(r"[-+<]?\d").any() for column in frame.columns]
    form = "".join("r" if one else "l" for one in right)
    text = frame.to_latex(index=False, escape=True, caption=caption, label=f"tab:{name}", column_format=form)
    text = text.replace("<", r"\textless{}").replace("∞", r"$\infty$")
    return f"% {drawn_from.KEY}: {data}\n% \\usepackage{{booktabs}}\n{text}"


def texts(frame: pd.DataFrame, notes: list[str], title: str, data: str) -> dict[str, str]:
    """Both forms of a table, by file ending."""
    return {"md": markdown(frame, notes, title, data), "tex": latex(frame, notes, title, data)}
