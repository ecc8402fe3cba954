"""What the documents say of the experiments that run every method: one table, and what is told apart, from the rows."""

from functools import cache
from itertools import combinations
from math import isnan
from pathlib import Path

import pandas as pd

import pvcbench
from pvcbench.stats import perplexity, power, ranking, significance, summaries, ties
from scripts.numbers_words import called, joined, paragraph, pvalue
from scripts.written_page import ROOT, table

SIZES = ("0.1", "0.25", "0.4")
COLUMNS = {  # experiment: the data set of it that is shown, what the column is called, and whether counts are shown
    "methods_needle": (None, "needles, question seen", True),
    "methods_needle_agnostic": (None, "needles, question not seen", True),
    "methods_ruler": ("niah_single_1", "niah_single_1", True),
    "methods_perplexity": (None, "continuation, NLL minus the full cache's", False),
}
TESTED = (  # experiment, a method, what it is compared with
    ("methods_needle", "snapkv_value_norm", ("snapkv", "criticalkv", "ada_snapkv", "kvzip_plus", "tova", "h2o")),
    ("methods_needle_agnostic", "kvzip_plus", ("kvzip", "compactor", "leverage_score", "keydiff", "snapkv", "h2o")),
    ("methods_perplexity", "snapkv", ("snapkv_value_norm",)),
    ("methods_perplexity", "h2o_mean", ("tova", "h2o", "snapkv", "ada_snapkv", "snapkv_value_norm")),
)
LEAKING = "leaking reference"
RANKED = "methods_needle_agnostic"
CLAIMED = (  # on questions that were not seen: what is said to lose less, than what, and by whom
    ("kvzip", "snapkv", "KVzip's paper"),
    ("criticalkv", "snapkv", "CriticalKV's paper"),
    ("critical_adakv", "ada_snapkv", "CriticalKV's paper"),
    ("defensivekv", "critical_adakv", "DefensiveKV's README"),
    ("layer_defensivekv", "defensivekv", "DefensiveKV's README"),
)


@cache
def rows_of(results: Path, experiment: str) -> pd.DataFrame:
    """The rows of an experiment, its runs joined (each has the full cache); of one data set where one is shown."""
    rows = pvcbench.load(results / experiment).drop_duplicates(["sample", "method", "budget"])
    chosen = COLUMNS[experiment][0]
    return rows if chosen is None else rows[rows["stratum"] == chosen]


@cache
def leaders(results: Path, experiment: str, size: str) -> set[str]:
    """The best method of an experiment at a size, and those that no paired test tells from it."""
    rows = rows_of(results, experiment)
    part = rows[(rows["budget"] == size) | rows["reference"].eq(True)]
    return ties.with_the_best(part, perplexity.shown(part), size)


def cells(results: Path, experiment: str) -> tuple[dict[str, list[str]], str]:
    """What the column of an experiment shows of each method at every size, and its head."""
    rows = rows_of(results, experiment)
    _, words, counted = COLUMNS[experiment]
    found, samples = summaries.summarize(rows), rows["sample"].nunique()
    full = found[found["reference"].astype(bool)].iloc[0]["score"]
    shown: dict[str, list[str]] = {}
    for name, own in found[~found["reference"].astype(bool)].groupby("method"):
        lines = own.set_index("budget")
        said = []
        for size in SIZES:
            score = lines["score"].get(size, float("nan"))
            known = f"{score * samples:.0f}" if counted else f"{full - score:.3f}"
            known = f"**{known}**" if name in leaders(results, experiment, size) else known
            said.append("-" if isnan(score) else known)
        shown[LEAKING if name in ranking.leaking(rows) else name] = said
    shown["full"] = [f"{full * samples:.0f}" if counted else "0"]
    return shown, f"{words}, of {samples}" if counted else f"{words} ({samples} documents)"


def overview(results: Path = ROOT / "results") -> str:
    """Every method at two sizes in every column, best on needles first; the floor and the leaking reference last."""
    columns = [cells(results, experiment) for experiment in COLUMNS]
    first = columns[0][0]

    def rank(name: str) -> tuple:
        scores = [-1.0 if one == "-" else float(one.strip("*")) for one in first[name]]
        return name == LEAKING, name == "random", *(-one for one in scores[::-1])

    names = sorted((name for name in first if name != "full"), key=rank)
    rows = [["full cache", *(", ".join(shown["full"]) for shown, _ in columns)]]
    rows += [
        [name if name == LEAKING else f"`{name}`", *(", ".join(shown.get(name, ["-"])) for shown, _ in columns)]
        for name in names
    ]
    sizes = joined(f"{float(size):.0%}" for size in SIZES)
    note = (
        f"The numbers are at {sizes} of the cache. A dash: the method cannot keep so little, or was not run. Bold: the "
        "best of its column at that size, and every method that is not told apart from it (paired tests against the "
        "best, Holm's correction over them; that few samples tell few apart is why many are bold)."
    )
    return f"{table(['method', *(head for _, head in columns)], rows)}\n\n{paragraph(note)}"


def tested(results: Path = ROOT / "results") -> str:
    """Which differences at the smallest size Holm's correction leaves, a table for each comparison."""
    parts = []
    for experiment, method, others in TESTED:
        lines = [significance.versus(rows_of(results, experiment), method, other, SIZES[0]) for other in others]
        found = pd.DataFrame(lines).assign(p_holm=significance.holm([line["p"] for line in lines]))
        rows = [
            [
                f"`{method}` minus `{line['other']}`",
                f"{line['difference']:+.3f}",
                f"[{line['low']:.3f}, {line['high']:.3f}]",
                *(pvalue(line[p]) for p in ("p", "p_holm")),
            ]
            for _, line in found.iterrows()
        ]
        apart = [f"`{line['other']}`" for _, line in found.iterrows() if line["p_holm"] < significance.ALPHA]
        said = f"After Holm's correction `{method}` is told apart from {joined(apart) if apart else 'none of them'}."
        command = f"pvcbench compare results/{experiment} --method {method} --against "
        command += " ".join(f"{other}@{SIZES[0]}" for other in others)
        head = [f"`{experiment}`, {float(SIZES[0]):.0%} kept", "difference", "interval", "p", "p after Holm"]
        parts.append(f"{table(head, rows)}\n\n{paragraph(said)} The command:\n\n    {command}")
    return "\n\n".join(parts)


def published(results: Path = ROOT / "results") -> str:
    """Whether published ranks on unseen questions come out here: paired differences at every size."""
    rows = rows_of(results, RANKED)
    lines = [significance.versus(rows, one, other, size) for one, other, _ in CLAIMED for size in SIZES]
    holm = significance.holm([line["p"] for line in lines])
    cells = [
        f"{line['difference']:+.2f} [{line['low']:.2f}, {line['high']:.2f}]{'*' if p < significance.ALPHA else ''}"
        for line, p in zip(lines, holm, strict=True)
    ]
    each = len(SIZES)
    made = [
        [f"`{one}` over `{other}`", source, *cells[at * each : (at + 1) * each]]
        for at, (one, other, source) in enumerate(CLAIMED)
    ]
    behind = [(line, p) for line, p in zip(lines, holm, strict=True) if line["difference"] < 0]
    worst = [
        f"`{line['method']}` against `{line['other']}` at {float(line['budget']):.0%} "
        f"({'told apart' if p < significance.ALPHA else 'not told apart'})"
        for line, p in behind
    ]
    turned = f"The rank is turned round for {joined(worst)}." if worst else "No rank is turned round."
    apart = sum(p < significance.ALPHA for p in holm)
    said = (
        f"Difference of the share of needles found, with its interval; a star where it is told apart after Holm's "
        f"correction over all {len(lines)}, which it is in {apart}. {turned} {at_the_end(rows)}"
    )
    head = [f"`{RANKED}`", "claimed by", *(f"{float(size):.0%} kept" for size in SIZES)]
    return f"{table(head, made)}\n\n{paragraph(said)}"


def at_the_end(rows: pd.DataFrame) -> str:
    """How many of the needles that the claimed methods find at the smallest size lie at the end of the text."""
    names = {name for pair in CLAIMED for name in pair[:2] if not name.startswith("kvzip")}
    found = rows[rows["method"].isin(names) & (rows["budget"] == SIZES[0]) & (rows["score"] == 1)]
    last = rows["sample_info"].map(lambda info: info["depth"]).max()
    there = found["sample_info"].map(lambda info: info["depth"] == last).sum()
    said = (
        f"Of the {len(found)} needles that all of these but KVzip find at {float(SIZES[0]):.0%}, {there} stand at "
        f"{last:.0f}% of the text, among what the last rows look at"
    )
    return said + (": there these methods can hardly differ." if there == len(found) else ".")


def sure(results: Path = ROOT / "results") -> str:
    """How many samples stand behind the table."""
    counts = sorted({rows_of(results, experiment)["sample"].nunique() for experiment in COLUMNS})
    tokens = rows_of(results, "methods_needle")["prompt_tokens"].max()
    needles = significance.versus(rows_of(results, "methods_needle"), "snapkv_value_norm", "snapkv", SIZES[0])
    width = 100 * (needles["high"] - needles["low"]) / 2
    return paragraph(
        f"How sure: one model of 135M parameters, English, prompts of about {tokens:,.0f} tokens, {counts[0]} to "
        f"{counts[-1]} samples in a column. The interval of the difference between {called('snapkv')} and its variant "
        f"with value norms on {needles['samples']} needles is {width:.0f} points wide to either side. A method's "
        "rank on a 7B model may be another: run these four experiments on yours."
    )


def unlike(results: Path = ROOT / "results", experiment: str = "methods_needle") -> pd.Series:
    """On which share of the needles each two ranked methods differ at the smallest size."""
    rows = rows_of(results, experiment)
    rows = rows[(rows["budget"] == SIZES[0]) & rows["score"].notna() & ~rows["method"].isin(ranking.leaking(rows))]
    scores = rows.pivot(index="sample", columns="method", values="score").dropna(axis="columns")
    return pd.Series([float((scores[one] != scores[two]).mean()) for one, two in combinations(scores, 2)])


def needed(results: Path = ROOT / "results") -> str:
    """How many needles tell two methods apart, by their true difference and the number of comparisons."""
    shares, families = unlike(results), (1, 10, 45)
    middle = round(float(shares.median()), 1)
    rows = [
        [
            f"{points} points",
            *(f"{power.samples_needed(points / 100, middle, significance.ALPHA / n):,}" for n in families),
        ]
        for points in (5, 10, 15, 20)
    ]
    head = ["true difference", "one comparison", *(f"the first of {n} by Holm" for n in families[1:])]
    least = [power.told_apart(100, middle, significance.ALPHA / n) for n in families]
    told = joined("none" if share is None else f"{100 * share:.0f}" for share in least)
    said = (
        f"At {float(SIZES[0]):.0%} of the cache two methods of `methods_needle` differ on {shares.median():.0%} of the "
        f"needles (the median over {len(shares):,} pairs; the middle half lies from {shares.quantile(0.25):.0%} to "
        f"{shares.quantile(0.75):.0%}). Let it be {middle:.0%}. So many needles give {power.POWER:.0%} chance that "
        "McNemar's test tells the two apart:"
    )
    then = (
        f"And 100 needles tell {told} points apart in a family of {joined(map(str, families))}. "
        f"`pvcbench.stats.power.samples_needed(0.15, {middle:g}, alpha=0.05)` computes it for your own numbers."
    )
    return f"{paragraph(said)}\n\n{table(head, rows)}\n\n{paragraph(then)}"
