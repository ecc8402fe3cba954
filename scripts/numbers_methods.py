"""What the documents say of the experiments that run every method: one table, and what is told apart, from the rows."""

from functools import cache
from math import isnan
from pathlib import Path

import pandas as pd

import pvcbench
from pvcbench.stats import perplexity, power, ranking, significance, summaries, ties
from scripts.numbers_words import called, joined, paragraph, pvalue
from scripts.written_page import ROOT, table

SIZES = ("0.1", "0.25", "0.4")
COLUMNS = {  # experiment: what the column is called, and what is shown: a count, per cent, or what is lost
    "methods_needle": ("needles, question seen", "count"),
    "methods_needle_agnostic": ("needles, question not seen", "count"),
    "methods_ruler": ("RULER, question not seen, per cent", "per cent"),
    "methods_perplexity": ("continuation, NLL minus the full cache's", "lost"),
}
SHOWN = {  # of a mean score, that of the full cache, and the number of samples
    "count": lambda score, full, samples: f"{score * samples:.0f}",
    "per cent": lambda score, full, samples: f"{100 * score:.0f}",
    "lost": lambda score, full, samples: f"{full - score:.3f}",
}
OF = {"count": ", of {}", "per cent": " (mean of the sets; {} samples)", "lost": " ({} documents)"}
TESTED = (  # experiment, a method, what it is compared with
    ("methods_needle", "snapkv_value_norm", ("snapkv", "criticalkv", "ada_snapkv", "kvzip_plus", "tova", "h2o")),
    ("methods_needle_agnostic", "kvzip_plus", ("kvzip", "compactor", "leverage_score", "keydiff", "snapkv", "h2o")),
    ("methods_ruler", "kvzip", ("compactor", "layer_defensivekv", "keydiff", "snapkv", "streaming_llm")),
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
    """The rows of an experiment, its runs joined: each has the full cache."""
    return pvcbench.load(results / experiment).drop_duplicates(["sample", "method", "budget"])


@cache
def leaders(results: Path, experiment: str, size: str) -> set[str]:
    """The best method of an experiment at a size, and those that no paired test tells from it."""
    rows = rows_of(results, experiment)
    part = rows[(rows["budget"] == size) | rows["reference"].eq(True)]
    return ties.with_the_best(part, perplexity.shown(part), size)


def cells(results: Path, experiment: str) -> tuple[dict[str, list[str]], str]:
    """What the column of an experiment shows of each method at every size, and its head."""
    rows = rows_of(results, experiment)
    words, kind = COLUMNS[experiment]
    found, samples = summaries.summarize(rows), rows["sample"].nunique()
    full = found[found["reference"].astype(bool)].iloc[0]["score"]
    shown: dict[str, list[str]] = {}
    for name, own in found[~found["reference"].astype(bool)].groupby("method"):
        lines = own.set_index("budget")
        said = []
        for size in SIZES:
            score = lines["score"].get(size, float("nan"))
            known = SHOWN[kind](score, full, samples)
            known = f"**{known}**" if name in leaders(results, experiment, size) else known
            said.append("-" if isnan(score) else known)
        shown[LEAKING if name in ranking.leaking(rows) else name] = said
    shown["full"] = ["0" if kind == "lost" else SHOWN[kind](full, full, samples)]
    return shown, words + OF[kind].format(samples)


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
        f"All of these methods but KVzip give {len(found)} right answers at {float(SIZES[0]):.0%} together, and "
        f"{there} of them are to needles at {last:.0f}% of the text, among what the last rows look at"
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


def unlike(results: Path, experiment: str) -> pd.Series:
    """On which share of the needles the best method at the smallest size differs from each that ties with it."""
    rows = rows_of(results, experiment)
    rows = rows[(rows["budget"] == SIZES[0]) & rows["method"].isin(leaders(results, experiment, SIZES[0]))]
    scores = rows.pivot(index="sample", columns="method", values="score").astype(float)
    best = scores.mean().idxmax()
    return scores.drop(columns=best).ne(scores[best], axis=0).mean()


def needed(results: Path = ROOT / "results") -> str:
    """How many needles tell two methods apart, by their true difference, where they differ, and the comparisons."""
    shares, families, samples = (0.1, 0.2, 0.4), (1, 45), 100
    rows = []
    for points in (5, 10, 15, 20):
        cells = [
            f"{power.samples_needed(points / 100, share, significance.ALPHA / n):,}" if points / 100 <= share else "-"
            for share in shares
            for n in families
        ]
        rows.append([f"{points} points", *cells])
    names = {1: "one comparison", 45: "the first of 45 by Holm"}
    head = ["true difference", *(f"differ on {share:.0%}: {names[n]}" for share in shares for n in families)]
    seen = [
        f"{found.median():.0%} of the needles in `{experiment}` (from {found.min():.0%} to {found.max():.0%})"
        for experiment in ("methods_needle", RANKED)
        if len(found := unlike(results, experiment))
    ]
    said = (
        f"At {float(SIZES[0]):.0%} of the cache the best method and one that is not told apart from it differ on "
        f"{joined(seen)}, in the median. So many needles give a chance of {power.POWER:.0%} that McNemar's test tells "
        "two methods apart; a dash: two methods cannot differ by more than the share of needles on which they differ."
    )
    least = [power.told_apart(samples, share, significance.ALPHA / n) for share in shares[1:] for n in families]
    told = ["nothing" if one is None else f"{100 * one:.0f} points" for one in least]
    then = (
        f"And {samples} needles tell, with that chance, {told[0]} apart where two methods differ on {shares[1]:.0%} of "
        f"them ({told[1]} as the first of {families[1]}), and {told[2]} where they differ on {shares[2]:.0%} "
        f"({told[3]})."
        " `pvcbench.stats.power.samples_needed(0.15, 0.2)` computes it for your own numbers."
    )
    return f"{paragraph(said)}\n\n{table(head, rows)}\n\n{paragraph(then)}"
