"""What docs/results/long_answers.md says of the committed run of long, drawn answers."""

from pathlib import Path

import pandas as pd

import pvcbench
from pvcbench.stats import drawn_answers
from scripts.numbers_words import called, joined, paragraph
from scripts.written_page import ROOT, table


def rows_of(results: Path) -> pd.DataFrame:
    """The rows of the experiment `reasoning`."""
    return pvcbench.load(results / "reasoning")


def answers(results: Path = ROOT / "results") -> str:
    """Every cell's share of right answers, its answers' lengths and its largest cache, and what they say."""
    rows = rows_of(results)
    found = drawn_answers.table(rows)
    each, problems = int(found["answers"].iloc[0]), int(found["problems"].iloc[0])
    average, passed = f"avg@{each}", f"pass@{each}"
    lines = [
        [
            f"`{line['method']}`",
            line["budget"] if line["method"] != "full" else "all",
            *(
                f"{line[name]:.2f} [{line[f'{name}_low']:.2f}, {line[f'{name}_high']:.2f}]"
                for name in (average, passed)
            ),
            f"{line['tokens']:.0f}",
            *(f"{line[name]:.0%}" for name in ("truncated", "looping")),
            f"{line['peak']:.0f}",
        ]
        for line in found.to_dict("records")
    ]
    head = ["method", "entries asked", average, passed, "tokens of an answer", "cut", "looping", "most entries"]
    full = found[found["method"] == "full"].iloc[0]
    cut = found[found["method"] != "full"]
    interval = rows["protocol"].iloc[0]["interval"]
    over = (cut["peak"] - cut["budget"].astype(int)).max()
    loops = cut.sort_values("looping", ascending=False).iloc[0]
    own = rows[(rows["method"] == "full") & rows["error"].isna()]
    boxed = own["metrics"].map(lambda one: one["boxed"]).mean()
    said = (
        f"{problems} problems, {each} answers to each. The full cache puts {boxed:.0%} of its answers in a box, where "
        f"the scorer looks for them, and gets {full[average]:.0%} right: no more can be lost. No cache was more than "
        f"{over:.0f} entries above its size, the interval being {interval}. The largest share of looping answers is "
        f"that of {called(loops['method'])} at {loops['budget']} entries, {loops['looping']:.0%}."
    )
    told = sorted(cut.loc[cut[f"{average}_high"] < full[f"{average}_low"], "method"].unique())
    said += f" Intervals that lie below the full cache's: {joined(map(called, told)) if told else 'none'}."
    return f"{table(head, lines)}\n\n{paragraph(said)}"


def longest(results: Path = ROOT / "results") -> str:
    """How large the cache was over the longest answer that is committed."""
    rows = pvcbench.load(results / "reasoning_long")
    row = rows[rows["method"] != "full"].sort_values("answer_tokens").iloc[-1]
    interval = row["protocol"]["interval"]
    return paragraph(
        f"One answer of {row['answer_tokens']:,.0f} tokens was written by {called(row['method'])} with {row['budget']} "
        f"entries and an interval of {interval}: no step attended to more than {row['decoding_entries_peak']:.0f} "
        f"entries (`results/reasoning_long`)."
    )
