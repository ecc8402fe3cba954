"""What evaluating many methods at many budgets costs, point by point and with shared prefills, by the cost model.

cells = [CellCost.of("h2o", H2O(), share, shape) for share in shares]
apart, together = per_point(model, cells, new_tokens, 2), shared(model, cells, new_tokens, 2)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pvcbench.costs.model import Architecture, Profile, Work, add, fork, prefill, seconds, step, times
from pvcbench.costs.scale_page import spell, table
from pvcbench.policy import Method, Shape
from pvcbench.tasks.longbench.datasets import SETS

PARTS = ("prefill", "fork", "decode")
LONGBENCH = {  # items and their mean length in words (Chinese: characters), by table 1 of Bai et al. 2023
    "narrativeqa": (200, 18409),
    "qasper": (200, 3619),
    "multifieldqa_en": (150, 4559),
    "multifieldqa_zh": (200, 6701),
    "hotpotqa": (200, 9151),
    "2wikimqa": (200, 4887),
    "musique": (200, 11214),
    "dureader": (200, 15768),
    "gov_report": (200, 8734),
    "qmsum": (200, 10614),
    "multi_news": (200, 2113),
    "vcsum": (200, 15380),
    "trec": (200, 5177),
    "triviaqa": (200, 8209),
    "samsum": (200, 6258),
    "lsht": (200, 22337),
    "passage_count": (200, 11141),
    "passage_retrieval_en": (200, 9289),
    "passage_retrieval_zh": (200, 6745),
    "lcc": (500, 1235),
    "repobench-p": (500, 4206),
}
TOKENS_PER_WORD = {"en": 1.35, "zh": 0.75, "code": 2.5}  # assumed: of Llama 3's tokenizer; Chinese per character


@dataclass(frozen=True)
class CellCost:
    """What a cell of a sweep needs for one prompt: its prefill, and what it keeps of each layer."""

    name: str
    profile: Profile
    kept: tuple[float, ...]
    ranked: tuple[int, ...]
    own_prefill: bool

    @classmethod
    def of(
        cls, name: str, method: Method, share: float, shape: Shape, reaching: Sequence[int] | None = None
    ) -> "CellCost":
        """A method at a share of the cache; `reaching` where it prunes during a prefill of its own."""
        profile = Profile.of(method, shape, reaching)
        if reaching is not None:
            return cls(name, profile, tuple(reaching), (0,) * shape.layers, True)
        kept = tuple(
            share * tokens if layer in shape.evicted else tokens for layer, tokens in enumerate(profile.reaching)
        )
        ranked = tuple(0 if share == 1 else shape.tokens for _ in kept)
        return cls(name, profile, kept, ranked, False)


def decoding(model: Architecture, cells: Sequence[CellCost], new_tokens: int, element: int) -> Work:
    """Greedy steps of some cells as one batch; the first token is the prefill's, so there is one step fewer."""
    steps = new_tokens - 1
    grown = len(cells) * model.layers * (steps + 1) / 2  # mean entries added so far, the step's own included
    return times(steps, step(model, sum(sum(cell.kept) for cell in cells) + grown, len(cells), element))


def per_point(model: Architecture, cells: Sequence[CellCost], new_tokens: int, element: int) -> dict[str, Work]:
    """One prompt, each cell alone: its prefill, its fork, its steps."""
    return {
        "prefill": add(*(prefill(model, cell.profile, element) for cell in cells)),
        "fork": add(*(fork(model, cell.kept, cell.ranked, element) for cell in cells)),
        "decode": add(*(decoding(model, [cell], new_tokens, element) for cell in cells)),
    }


def shared(model: Architecture, cells: Sequence[CellCost], new_tokens: int, element: int) -> dict[str, Work]:
    """One prompt, all cells: a prefill for all that compress after it, pruned ones beside it, steps in one batch."""
    common = [cell for cell in cells if not cell.own_prefill]
    own = [cell.profile for cell in cells if cell.own_prefill]
    if common:
        together = common[0].profile
        for cell in common[1:]:
            together = together.with_rows(cell.profile)
        own.append(together)
    return {
        "prefill": add(*(prefill(model, profile, element) for profile in own)),
        "fork": add(*(fork(model, cell.kept, cell.ranked, element) for cell in cells)),
        "decode": decoding(model, cells, new_tokens, element),
    }


def longbench(longest: int) -> list[tuple[str, int, int, int]]:
    """Name, items, tokens of the mean prompt (cut to `longest`) and most new tokens of each set."""
    found = []
    for name, (items, words) in LONGBENCH.items():
        tokens = round(words * TOKENS_PER_WORD[SETS[name].language])
        found.append((name, items, min(longest, tokens), SETS[name].max_new_tokens))
    return found


def hours(
    model: Architecture,
    cells_of: Callable[[int], Sequence[CellCost]],
    rates: Mapping[str, float],
    element: int,
    longest: int = 7950,
) -> list[dict]:
    """Hours of each LongBench set in all parts, apart and shared, and last of all together.

    `cells_of(tokens)` are the cells of one prompt.
    """
    found = []
    for name, items, tokens, new in longbench(longest):
        cells = cells_of(tokens)
        row = {"set": name, "items": items, "tokens": tokens, "new": new, "cells": len(cells)}
        row["prefills"] = sum(cell.own_prefill for cell in cells) + 1
        for way, works in (("apart", per_point), ("shared", shared)):
            for part, work in works(model, cells, new, element).items():
                row[f"{way} {part}"] = items * seconds(work, rates) / 3600
        found.append(row)
    columns = ["items", *(f"{way} {part}" for way in ("apart", "shared") for part in PARTS)]
    return [*found, {"set": "all"} | {column: sum(row[column] for row in found) for column in columns}]


def swept(rows: Sequence[Mapping]) -> str:
    """Those hours as a table."""
    lines, columns = [], [f"{way} {part}" for way in ("apart", "shared") for part in PARTS]
    for row in rows:
        sums = [sum(row[f"{way} {part}"] for part in PARTS) for way in ("apart", "shared")]
        sizes = [f"{row[key]:,}" if key in row else "" for key in ("items", "tokens", "new", "cells")]
        lines.append([row["set"], *sizes, *(f"{row[key]:,.2f}" for key in columns), *(f"{each:,.1f}" for each in sums)])
    return table(["set", "items", "tokens", "new", "cells", *columns, "apart", "shared"], lines)


def worked(row: Mapping) -> str:
    """The arithmetic of one set in words."""
    item = {key: row[key] * 3600 / row["items"] for key in row if key.startswith(("apart", "shared"))}
    cells, steps = row["cells"], row["new"] - 1
    apart = item["apart prefill"] / cells, item["apart fork"] / cells, item["apart decode"] / (cells * steps)
    whole = [sum(item[f"{way} {part}"] for part in PARTS) for way in ("apart", "shared")]
    step_s, total = item["shared decode"] / steps, [row["items"] * spent / 3600 for spent in whole]
    return (
        f"{row['set']}, an item of {row['tokens']:,} tokens. Apart: {cells} prefills of {spell(apart[0])} on average, "
        f"{cells} forks of {spell(apart[1])}, {cells} x {steps} steps of {spell(apart[2])}, {spell(whole[0])} in all. "
        f"Shared: {row['prefills']} prefills that take {spell(item['shared prefill'])} together, the same forks, "
        f"{steps} steps of {cells} caches, {spell(step_s)} each: {spell(whole[1])}. Times {row['items']} items: "
        f"{total[0]:.1f} and {total[1]:.1f} hours."
    )
