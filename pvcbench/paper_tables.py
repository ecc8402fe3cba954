"""The tables of a paper, as Markdown and as LaTeX (booktabs), each with the hash of its data in a comment."""

import math

import pandas as pd

from pvcbench import drawn, stats
from pvcbench.looks import asked, metric, subject
from pvcbench.significance import ALPHA, STRICTER, TEST

LATEX = str.maketrans({"_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$"})
NO_VALUE = "-"


def scores(rows: pd.DataFrame, compared: pd.DataFrame, published: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The table of a scored run: method by size, score and difference to full with intervals; and its notes."""
    nll, share = "perplexity" in compared, rows["score"].dropna().astype(float).between(0, 1).all()
    scale, digits = (100, 1) if share and not nll else (1, 2)
    label = "perplexity" if nll else metric(rows) + (", %" if scale == 100 else "")
    kind, heading = ("nll_difference", "NLL - full") if nll else ("difference", "minus full")
    lines, lost, notes = [], {}, [subject(rows).replace("\n", "; ")]
    for line in compared.itertuples():
        cell = {"method": line.method, "asked": "all" if line.reference else asked(line.budget)}
        empty = line.samples == 0
        cell |= {"kept, %": NO_VALUE if empty else f"{100 * line.kept_fraction:.1f}"}
        cell |= {"MiB": NO_VALUE if empty else f"{line.mib:.1f}", "n": str(line.samples)}
        cell[label] = _ends(line.score, line.low, line.high, scale, digits)
        ends = (getattr(line, f"{kind}{end}", float("nan")) for end in ("", "_low", "_high"))
        cell[heading] = _ends(*ends, scale, 3 if nll else digits, sign=True) if not line.reference else ""
        cell[heading] += "*" if line.p_holm < ALPHA else ""
        cell["p (Holm)"] = "" if line.reference or pd.isna(line.p_holm) else _probability(line.p_holm)
        if len(published):
            theirs = published[(published["method"] == line.method) & (published["budget"] == line.budget)]
            cell["published"] = "; ".join(f"{one.score:g}" for one in theirs.itertuples())
        lines.append(cell)
        if line.errors:
            why = f"{line.errors} of {line.errors + line.samples} samples have no value: {line.error}"
            lost.setdefault((line.method, why), []).append(asked(line.budget))
    notes.append(_method_note(compared))
    notes += [f"{method} at {', '.join(sizes)}: {why}." for (method, why), sizes in lost.items()]
    notes += [f"Published: {source}." for source in (published["source"].unique() if len(published) else ())]
    return pd.DataFrame(lines), notes


def by_set(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The scores of every data set, a column each, and their mean; summary.csv in a run's folder has the intervals."""
    parts = stats.breakdown(stats.headline(rows))
    share = rows["score"].dropna().astype(float).between(0, 1).all()
    scale, digits = (100, 1) if share else (1, 2)
    lines = []
    for line in parts[parts["kind"] == "all"].itertuples():
        own = parts[(parts["method"] == line.method) & (parts["budget"] == line.budget)]
        cell = {"method": line.method, "asked": "all" if line.reference else asked(line.budget)}
        for kind in ("set", "all"):
            found = own[own["kind"] == kind]
            cell |= {one.part: _ends(one.score, math.nan, math.nan, scale, digits) for one in found.itertuples()}
        lines.append(cell)
    notes = [subject(rows).replace("\n", "; "), "Per cent." if scale == 100 else "Scores."]
    return pd.DataFrame(lines).fillna(NO_VALUE), notes


def _method_note(compared: pd.DataFrame) -> str:
    number = int(compared["p_holm"].notna().sum())
    if not number:
        return "Brackets: 95% intervals. Fewer than ten clusters, or no full cache: no tests."
    return (
        "Brackets: 95% intervals, paired by sample for differences. * differs from the full cache at 5% after Holm's "
        f"correction over the {number} comparisons of this table. {TEST}. {STRICTER}."
    )


def _ends(value: float, low: float, high: float, scale: float, digits: int, sign: bool = False) -> str:
    """A number and its interval, or a dash."""
    if value is None or pd.isna(value):
        return NO_VALUE
    told = [f"{scale * one:{'+' if sign else ''}.{digits}f}" for one in (value, low, high)]
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
    return f"<!-- {drawn.KEY}: {data} -->\n\n# {title}\n\n{table}\n{more}"


def latex(frame: pd.DataFrame, notes: list[str], title: str, data: str) -> str:
    """A LaTeX table for the booktabs package, with its hash, its caption and a label."""
    caption = " ".join(f"{one.rstrip('.')}." for one in (title, *notes)).translate(LATEX)
    name = "".join(one if one.isalnum() else "-" for one in title)
    right = [frame[column].str.match(r"[-+<]?\d").any() for column in frame.columns]
    form = "".join("r" if one else "l" for one in right)
    text = frame.to_latex(index=False, escape=True, caption=caption, label=f"tab:{name}", column_format=form)
    text = text.replace("<", r"\textless{}")
    return f"% {drawn.KEY}: {data}\n% \\usepackage{{booktabs}}\n{text}"


def texts(frame: pd.DataFrame, notes: list[str], title: str, data: str) -> dict[str, str]:
    """Both forms of a table, by file ending."""
    return {"md": markdown(frame, notes, title, data), "tex": latex(frame, notes, title, data)}
