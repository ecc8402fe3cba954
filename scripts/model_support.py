"""Writes docs/reference/models.md from pvcbench/support.json, and with --measure that file too.

    python scripts/model_support.py                      # writes the page; CI runs it and compares
    python scripts/model_support.py --check              # says whether the page is current, and exits with 1 if not
    python scripts/model_support.py --measure            # tries every architecture of the installed transformers
    python scripts/model_support.py --measure lfm2 bamba # these alone; the others stay as the file has them

An architecture is tried on a tiny random model of it (`architectures/families.py`): the engine's check, every method of
conf/method, and the full cache beside the unmodified model and its `generate`. All of them take minutes on one core.
"""

import argparse
import os
import signal
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pvcbench.architectures import support
from pvcbench.architectures.support import REFUSED, RUNS, UNKNOWN, Family, Support

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "models.md"
HEAD = """# Models: what runs, and what does not

This page is written by `scripts/model_support.py`. Each architecture is tried on a tiny random model: the check that
every run makes when it loads a model, every method of `conf/method`, and the full cache beside the unmodified model.
`pvcbench models NAME` says the same on the command line, and `pvcbench models NAME --try` tries it anew.

The largest error is the difference of logits from the unmodified model's, as a share of their range, over a prompt read
whole and in chunks and the steps after it: in float64, with transformers' own roundings to float32 taken out, where
the model has float64. What is read as images or sound is not tried. A name with a colon is a variant of a model type.
"""
LIMIT = 60  # seconds that the trial of one family may take


def within(seconds: int, name: str, methods: dict) -> Family:
    """The trial of a family; one that takes longer is not known."""
    from pvcbench.architectures import trial

    def late(*_):
        raise KeyboardInterrupt  # what no trial takes for an answer

    signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        return trial.run(name, methods)
    except KeyboardInterrupt:
        kind = support.architectures()[name.partition(":")[0]]
        return Family(name, kind, UNKNOWN, f"its trial took more than {seconds} seconds")
    finally:
        signal.alarm(0)


def measured(chosen: Sequence[str], threads: int = 1) -> Support:
    """The trial of the chosen families, or of all; what the file knows of the others."""
    import torch

    from pvcbench.architectures import families
    from pvcbench.config import building, compose
    from pvcbench.engine.engine import VERSION

    torch.set_num_threads(threads)
    names = compose.complete("method")
    methods = building.build_methods(compose.composed([f"method=[{','.join(names)}]"]).methods)
    known = support.load() if support.FILE.is_file() else Support("", 0, [], {})
    tried = {}
    for name in chosen or families.every():
        tried[name] = within(LIMIT, name, methods)
        print(f"{name:28} {tried[name].verdict:10} {tried[name].reason or ''}", flush=True)
    kept = {name: known.families[name] for name in families.every() if name in known.families} if chosen else {}
    return Support(support.installed(), VERSION, names, kept | tried, known.before)


def running(known: Support) -> list[str]:
    """The model types that run."""
    return sorted(name for name, family in known.types.items() if family.verdict == RUNS)


def short(value: float) -> str:
    """An error with one digit: 3e-16."""
    return f"{value:.0e}".replace("e-0", "e-")


def evicting(family: Family) -> str:
    """How many layers of the tiny model evict, and what all of them are."""
    kinds = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in family.kinds.items())
    return (
        f"{family.evicted} of {family.layers} ({kinds})"
        if len(family.kinds) > 1
        else f"{family.evicted} of {family.layers}"
    )


def refused_methods(known: Support) -> tuple[dict[str, str], list[str]]:
    """What stands in the table for each family's refused methods, and the reasons by their letters."""
    reasons = sorted({reason for family in known.families.values() for reason in family.refused.values()})
    letters = {reason: str(number) for number, reason in enumerate(reasons, 1)}
    cells = {}
    for name, family in known.families.items():
        groups: dict[str, list[str]] = {}
        for method, reason in family.refused.items():
            groups.setdefault(reason, []).append(f"`{method}`")
        cells[name] = "; ".join(f"{', '.join(found)} [{letters[reason]}]" for reason, found in groups.items())
    return cells, [f"{letter}. {reason}" for reason, letter in letters.items()]


def page(known: Support) -> str:
    """The whole page."""
    return "\n\n".join([HEAD.rstrip(), counts(known), *runs(known), *others(known)]) + "\n"


def counts(known: Support) -> str:
    """How many run, now and before."""
    found, now = known.counts, set(running(known))
    text = f"Of the {len(known.types)} model types that transformers {known.transformers} loads as causal language "
    text += f"models, **{found[RUNS]} run**, {found[REFUSED]} are refused and {found[UNKNOWN]} could not be tried."
    if known.before:
        added, gone = sorted(now - set(known.before)), sorted(set(known.before) - now)
        text += f" {len(known.before)} ran before the engine was extended to the layers of 2026."
        text += f" New: {', '.join(f'`{name}`' for name in added)}." if added else ""
        text += f" No more: {', '.join(f'`{name}`' for name in gone)}." if gone else ""
    return "\n".join(textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False))


def runs(known: Support) -> list[str]:
    """The table of what runs."""
    cells, reasons = refused_methods(known)
    lines = ["## Runs", "", "| model type | class | layers that evict | largest error | methods refused |"]
    lines.append("|---|---|---|---|---|")
    for name, family in sorted(known.families.items()):
        if family.verdict != RUNS:
            continue
        error = short(family.error) if family.error is not None else ""
        error += "" if family.dtype in (None, "float64") else f" ({family.dtype})"
        error += "" if family.chunked in (None, True) else ", not in chunks"
        error += "" if family.generated in (None, True) else ", other tokens"
        lines.append(f"| `{name}` | {family.model} | {evicting(family)} | {error} | {cells[name]} |")
    parts = ["\n".join(lines)]
    return [*parts, "Why methods are refused:\n\n" + "\n".join(reasons)] if reasons else parts


def others(known: Support) -> list[str]:
    """What is refused or not known, by reason."""
    parts = []
    for verdict, title in ((REFUSED, "## Refused"), (UNKNOWN, "## Not known")):
        groups: dict[str, list[str]] = {}
        for name, family in sorted(known.families.items()):
            if family.verdict == verdict:
                groups.setdefault((family.reason or "").replace(family.model, "the model"), []).append(f"`{name}`")
        lines = [f"- {', '.join(names)}: {reason}" for reason, names in sorted(groups.items(), key=lambda one: one[1])]
        parts += [title + "\n\n" + "\n".join(lines)] if lines else []
    return parts


def main() -> int:
    """Measures if asked, then writes or checks the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", nargs="*", metavar="NAME", help="try these architectures; all without a name")
    parser.add_argument("--before", action="store_true", help="keep what runs so far as what ran before")
    parser.add_argument("--check", action="store_true", help="write nothing, say whether the page is current")
    options = parser.parse_args()
    if options.before:
        known = support.load()
        support.save(replace(known, before=running(known)))
    if options.measure is not None:
        support.save(measured(options.measure))
    text = page(support.load())
    if options.check:
        current = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
        print("docs/reference/models.md is current" if current else "stale: docs/reference/models.md")
        return 0 if current else 1
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(text, encoding="utf-8")
    print("docs/reference/models.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
