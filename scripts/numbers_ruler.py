"""What the documents say of RULER's sets: one table at the middle size, and what the full cache can do at all."""

from pathlib import Path

from pvcbench.stats import ranking, summaries
from scripts.numbers_methods import LEAKING, SIZES, rows_of
from scripts.numbers_words import joined, paragraph
from scripts.written_page import ROOT, table

EXPERIMENT, SIZE = "methods_ruler", SIZES[1]
ABLE, UNABLE = 0.5, 0.2  # mean scores of the full cache: from here on a set can rank methods, below it says nothing


def by_set(results: Path = ROOT / "results") -> str:
    """The mean score of each set at the middle size, best mean first; then what the full cache can and cannot do."""
    rows = rows_of(results, EXPERIMENT)
    rows = rows[(rows["budget"] == SIZE) | rows["reference"].astype(bool)]
    parts, whole = summaries.breakdown(rows), summaries.summarize(rows).set_index("method")
    sets = list(dict.fromkeys(rows["stratum"]))
    means = parts[parts["kind"] == "set"].pivot(index="method", columns="part", values="score")
    leaks = ranking.leaking(rows)

    def place(name: str) -> tuple:
        return name in leaks, name == "random", name != "full", -whole.loc[name, "score"]

    def line(name: str) -> list[str]:
        mean = whole.loc[name]
        said = LEAKING if name in leaks else "full cache" if name == "full" else f"`{name}`"
        interval = f"{100 * mean['score']:.0f} [{100 * mean['low']:.0f}, {100 * mean['high']:.0f}]"
        return [said, *(f"{100 * means.loc[name, one]:.0f}" for one in sets), interval]

    head = [f"{float(SIZE):.0%} kept", *(f"`{one}`" for one in sets), "mean"]
    lines = [line(name) for name in sorted(whole.index, key=place)]
    full = means.loc["full"]
    able = [f"`{one}`" for one in sets if full[one] >= ABLE]
    unable = [f"`{one}`" for one in sets if full[one] < UNABLE]
    each = rows.groupby("stratum")["sample"].nunique()
    said = (
        f"Mean scores in per cent of {each.min()} samples a set, scored as the leaderboard does; the mean of the sets "
        f"has its interval. With the full cache the embedded model gets at least {ABLE:.0%} of "
        f"{joined(able) if able else 'no set'}, and less than {UNABLE:.0%} of {joined(unable) if unable else 'none'}: "
        "there no method can be told from another."
    )
    return f"{table(head, lines)}\n\n{paragraph(said)}"
