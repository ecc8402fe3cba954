"""Measures some of a stored run again and says whether its rows agree; writes nothing into the run.

pvcbench verify results/quickstart/a9b99b9e9929            # at least 8 cells, whole samples
pvcbench verify RUN --cells 100 --seed 1                   # more of them, others

On the machine of the run (same processor, packages, threads and flags) rows must be identical apart from times and
memory; elsewhere they must agree within a tolerance. Exits with 0 if all agrees, 1 if not, 2 for a user's error.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from pvcbench.errors import UserError
from pvcbench.evaluation.item import WorkItem
from pvcbench.runs import environment, row_comparison, sessions
from pvcbench.runs.measuring import measured
from pvcbench.runs.row_comparison import SPEEDS, TIMES, Tolerance
from pvcbench.runs.rows import Key, Stored, key_of, stored_rows
from pvcbench.runs.run_id import essence, run_id
from pvcbench.runs.spec import RunSpec
from pvcbench.runs.stored import stored, stored_config
from pvcbench.tasks.draws import problem_of, samples_of

SAY = partial(print, flush=True)


@dataclass
class Verdict:
    """What verifying a run found."""

    changed: list[str]  # parts of the identity, one line each
    machine: list[str]  # what of machine and versions is not as it was, one line each
    tolerance: Tolerance | None  # None: equality was asked for
    compared: int = 0
    rows: dict[Key, list[str]] = field(default_factory=dict)  # rows that differ, and where
    answers: dict[Key, str] = field(default_factory=dict)  # rows that agree but for another output

    @property
    def agree(self) -> bool:
        """Whether the rows agree."""
        granted = 0.0 if self.tolerance is None else self.tolerance.answers * self.compared
        return not self.rows and len(self.answers) <= granted


def choose(rows: Mapping[Key, Stored], cells: int, seed: int, alone: bool) -> dict[str, set[Key]]:
    """At least this many random cells by sample, of rows without an error: whole samples, or where cells run alone
    exactly so many, spread over methods and budgets."""
    samples: dict[str, list[Key]] = {}
    for key in rows:
        samples.setdefault(key[0], []).append(key)
    samples = {name: keys for name, keys in samples.items() if any(rows[key].row["error"] is None for key in keys)}
    if not samples:
        raise UserError("this run has no row without an error: there is nothing to verify")
    rng = np.random.default_rng(seed)
    names = [str(name) for name in rng.permutation(sorted(samples))]
    chosen: dict[str, set[Key]] = {}
    if not alone:
        while names and sum(map(len, chosen.values())) < cells:
            name = names.pop()
            chosen[name] = set(samples[name])
        return chosen
    pairs: list[Key] = []
    while names and len(pairs) < cells:
        pairs += [key for key in samples[names.pop()] if rows[key].row["error"] is None]
    order = [pairs[number] for number in rng.permutation(len(pairs))]
    seen: dict[object, int] = {}
    rank = {}
    for key in order:  # the first of every method, then the second, ...
        rank[key] = seen[key[1]] = seen.get(key[1], -1) + 1
    for key in sorted(order, key=rank.__getitem__)[:cells]:
        chosen.setdefault(key[0], set()).add(key)
    return chosen


def work_of(spec: RunSpec, chosen: Mapping[str, set[Key]]) -> list[WorkItem]:
    """The chosen cells, sample by sample in the order of the run."""
    work, left, task, seed = [], dict(chosen), spec.task, spec.protocol.seed
    for index in range(task.size(seed)):
        if not left:
            break
        for sample in samples_of(task, seed, index, spec.protocol.draws):
            wanted = left.pop(sample.id, ())
            own = tuple(point for point in spec.points if (sample.id, point.name, point.label) in wanted)
            if own:
                work.append(WorkItem(sample, task.encode(problem_of(sample)), own))
    return work


def verify(folder: Path, cells: int = 8, seed: int = 0, relative: float | None = None, say=SAY) -> Verdict:
    """Measures at least `cells` cells of a run again; `say` gets every line of the story."""
    then, config, rows = stored(folder), stored_config(folder), stored_rows(folder)
    if not rows:
        raise UserError(f"{folder} has no rows: name the folder of one run")
    history = sessions.read(folder)
    spec = RunSpec.of(config)
    chosen = choose(rows, cells, seed, spec.kind.alone)
    wanted = {key for keys in chosen.values() for key in keys}
    of_rows = [sessions.session_of(history, rows[key].file, rows[key].line) for key in wanted]
    known = {id(one): one["environment"] if one is not None else {} for one in of_rows}
    recorded = next(filter(None, known.values()), {})
    spec = replace(spec, threads=recorded.get("threads") or spec.threads)
    loaded = spec.load()
    now = spec.identity(loaded)
    today = environment.of_run(now, loaded.model)
    report = Verdict(changed(then["identity"], now, recorded, today), machine(known.values(), today, spec.batch), None)
    if report.machine:
        report.tolerance = Tolerance.of(loaded.identity["dtype"], relative)
    say(f"{folder}: task {spec.task.name}, model {loaded.identity['name']}, {len(rows)} rows")
    tell_conditions(report, run_id(now), say)
    spec.task.prepare(loaded.prompter())
    work = work_of(spec, chosen)
    again = {key_of(row): row for batch in measured(spec, loaded, work, len(work)) for row in batch}
    compare(report, {key: rows[key].row for key in wanted}, again, SPEEDS if spec.kind.speeds else TIMES)
    tell_rows(report, len(chosen), say)
    return report


def changed(then: Mapping, now: Mapping, recorded: Mapping, today: Mapping) -> list[str]:
    """What of the identity is not as stored, and whether the weights in memory are."""
    lines, own = row_comparison.changes(essence(then), essence(now)), "loaded_sha256"
    pair = [{"model": {own: side["model"].get(own)}} for side in (recorded, today) if "model" in side]
    return lines + (row_comparison.changes(*pair) if len(pair) == 2 else [])


def machine(known, today: Mapping, batch: int) -> list[str]:
    """Why rows need not be identical: other machines or versions, or batches that cannot be put together again."""
    lines = [line for recorded in known for line in sessions.differences(recorded, today)]
    if not all(known):
        lines.append("nothing recorded tells which machine wrote some of these rows")
    if batch > 1:
        lines.append(f"batch: {batch} samples ran together, which need not be those that run together now")
    return list(dict.fromkeys(lines))


def compare(report: Verdict, then: Mapping[Key, Mapping], now: Mapping[Key, Mapping], ignored: frozenset) -> None:
    """Compares the stored rows with those measured now."""
    for key, row in sorted(then.items(), key=lambda item: tuple(map(str, item[0]))):
        report.compared += 1
        if key not in now:
            report.rows[key] = ["today's task and methods have no such sample and cell"]
            continue
        lines, other = row_comparison.row_differences(row, now[key], report.tolerance, ignored)
        if lines:
            report.rows[key] = lines
        elif other:
            report.answers[key] = row_comparison.text_difference(row["output"], now[key]["output"])


def tell_conditions(report: Verdict, run: str, say) -> None:
    """What is as it was, and what is therefore asked of the rows."""
    if report.changed:
        say(f"identity: not as stored, the same command would now start run {run}")
    else:
        say("identity: as stored (model, data, methods, engine, settings)")
    for line in report.changed:
        say(f"  {line}")
    if report.tolerance is None:
        say("machine: as recorded, so rows must be identical apart from times and memory")
        return
    allowed = f"{report.tolerance.relative:g} relative, {report.tolerance.absolute:g} absolute"
    say(f"machine: not as recorded, so numbers may differ by {allowed}, and {report.tolerance.answers:.0%} of outputs")
    for line in report.machine:
        say(f"  {line}")


def tell_rows(report: Verdict, samples: int, say) -> None:
    """What came out."""
    for key, lines in report.rows.items():
        for line in lines:
            say(f"  {' '.join(str(part) for part in key if part is not None)}: {line}")
    for key, line in report.answers.items():
        say(f"  {' '.join(str(part) for part in key if part is not None)}: another output, {line}")
    same = report.compared - len(report.rows) - len(report.answers)
    how = "identical" if report.tolerance is None else "within the tolerance"
    other = f", {len(report.answers)} with another output" if report.answers else ""
    verdict = "agree" if report.agree else "differ"
    say(f"{verdict}: {same} of {report.compared} rows of {samples} sample{'s' * (samples != 1)} are {how}{other}")
