"""What lm-eval makes of stored responses: the metrics of one document, and the results of a whole cell.

Responses are plain JSON, one per request: `[log-likelihood, greedy]`, a text, or a rolling log-likelihood.
"""

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Number
from pathlib import Path
from unittest import mock

RATES = {"word_perplexity": "log_likelihood_per_word", "byte_perplexity": "log_likelihood_per_byte"}
RATES |= {"bits_per_byte": "log_likelihood_per_byte"}  # perplexities exist for whole tasks only


def document(task, item, responses: Sequence) -> dict:
    """Score, metrics and output of one document; the score is its first metric for which higher is better."""
    copies = copied(item, item.number)
    for copy, response in zip(copies, responses, strict=True):
        copy.resps = [native(response)] * (copy.repeats or 1)
    metrics, ranked = {}, []
    with mock.patch.object(task, "_instances", copies):
        task.apply_filters()
    filters = list(copies[0].filtered_resps)
    for key in filters:
        values = task.process_results(copies[0].doc, [copy.filtered_resps[key] for copy in copies])
        for metric, value in values.items():
            name, number = scalar(metric, value)
            if number is None:
                continue
            metrics[name if len(filters) == 1 else f"{name},{key}"] = number
            lower = name == metric and task.higher_is_better().get(metric) is False
            ranked.append((lower, name == "log_likelihood", -number if lower else number))
    best = min(ranked, key=lambda entry: entry[:2], default=(None, None, None))
    output = responses[0] if isinstance(responses[0], str) else None
    return {"score": best[2], "metrics": metrics, "output": output}


def scalar(metric: str, value) -> tuple[str, float | None]:
    """A document's metric as a number under the name it then deserves; None where only a whole task has one."""
    if metric in RATES and isinstance(value, tuple):
        return RATES[metric], value[0] / value[1]
    if metric in ("f1", "mcc") and isinstance(value, tuple):  # (gold, predicted), from which lm-eval aggregates
        return "acc", float(value[0] == value[1])
    name = "log_likelihood" if metric == "perplexity" else metric
    return name, float(value) if isinstance(value, Number) and math.isfinite(value) else None


def cell(tasks: Mapping, groups: Mapping, known: Sequence[tuple]) -> dict:
    """What lm_eval.evaluate makes of (document, responses) pairs; an aggregation that fails is an `error`."""
    from lm_eval.evaluator import evaluate

    from pvcbench.tasks.lm_eval.recorder import Replay

    numbers, answers, chosen = {}, {}, {}
    with contextlib.ExitStack() as stack:
        for name, task in tasks.items():
            own = sorted(((item, found) for item, found in known if item.task == name), key=lambda pair: pair[0].number)
            if not own:
                continue
            numbers[name], chosen[name], copies = [item.number for item, _ in own], task, []
            for place, (item, responses) in enumerate(own):  # lm-eval counts the chosen documents anew
                fresh = copied(item, place)
                answers |= {id(copy): native(found) for copy, found in zip(fresh, responses, strict=True)}
                copies += fresh
            stack.enter_context(mock.patch.object(task, "_instances", copies))
            stack.enter_context(mock.patch.object(task, "build_all_requests", lambda **_: None))
        groups = groups if len(chosen) == len(tasks) else {}
        settings = {"samples": numbers, "bootstrap_iters": 0, "log_samples": False}
        try:
            found = evaluate(Replay(answers), {"tasks": chosen, "groups": groups}, **settings) if chosen else {}
        except Exception as error:
            return {"results": {}, "error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    return {key: found[key] for key in ("results", "groups", "versions", "n-shot", "higher_is_better") if key in found}


def copied(item, place: int) -> list:
    """Fresh instances of a document under another number."""
    return [
        replace(one, resps=[], filtered_resps={}, metadata=(item.task, place, one.repeats)) for one in item.instances
    ]


def native(response):
    """A response as lm-eval's models return it."""
    return tuple(response) if isinstance(response, list) else response


def write(path: Path, content: Mapping) -> None:
    """Stores JSON that any reader takes: numbers that are not finite as text."""
    path.write_text(json.dumps(plain(content), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def plain(value):
    """The value in JSON's own types."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, bool | str | None):
        return value
    if isinstance(value, Number):
        number = float(value)
        return value if isinstance(value, int) else number if math.isfinite(number) else str(number)
    return str(value)
