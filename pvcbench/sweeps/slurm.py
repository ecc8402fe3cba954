"""A sweep on SLURM: one array of tasks, a line of the manifest each, and what one task does."""

import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pvcbench.errors import UserError
from pvcbench.runs import locks
from pvcbench.runs.writing import write_whole
from pvcbench.sweeps.manifest import Line, Sweep

TIME = re.compile(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}|unlimited|infinite", re.IGNORECASE)
AGAIN = 75  # a task's exit code that asks for another turn (EX_TEMPFAIL of sysexits.h)


@dataclass(frozen=True)
class Resources:
    """What every task of the array gets."""

    time: str = "4:00:00"
    gpus: int = 1
    at_once: int | None = None  # tasks that run at the same time
    warning: int = 120  # seconds before the time limit at which a task is told
    options: tuple[str, ...] = ()  # more options of sbatch

    def __post_init__(self):
        if not TIME.fullmatch(self.time):
            forms = "MINUTES, HOURS:MINUTES:SECONDS or DAYS-HOURS"
            raise UserError(f"--time {self.time} is no time limit of SLURM's: write {forms}, such as 4:00:00")
        least = {"--gpus": (self.gpus, 0), "--array-limit": (self.at_once, 1), "--warning": (self.warning, 1)}
        for name, (value, lowest) in least.items():
            if value is not None and value < lowest:
                raise UserError(f"{name} must be {lowest} or more, not {value}")


def array_script(sweep: Sweep, indices: Sequence[int], resources: Resources, again: bool, folder: Path) -> str:
    """The batch script of these lines, run in `folder`; `again` tries failed cells again, in a task's first start."""
    array = ranges(indices) + (f"%{resources.at_once}" if resources.at_once else "")
    options = [f"--job-name={job_name(sweep)}", f"--array={array}", f"--time={resources.time}"]
    options += [f"--output={sweep.logs}/%A_%a.log", "--open-mode=append", "--requeue"]
    options += [f"--signal=B:USR1@{resources.warning}"]
    options += [f"--gres=gpu:{resources.gpus}"] if resources.gpus else []
    command = shlex.join([sys.executable, "-m", "pvcbench", "sweep", "run", str(sweep.manifest)])
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {shlex.quote(option)}" for option in options),
            "# Before the time limit SLURM sends USR1 to this shell only. Python then stops, and where it has measured",
            f"# something it ends with {AGAIN}: the task goes back into the queue and continues there later.",
            f"cd {shlex.quote(str(folder))} || exit 1",
            f"again=({'--retry-failed' if again else ''})",
            "((${SLURM_RESTART_COUNT:-0})) && again=()",
            f'{command} "$SLURM_ARRAY_TASK_ID" "${{again[@]}}" &',
            "child=$! warned= task=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID  # the plain id may mean the whole array",
            "trap 'warned=1; kill -USR1 \"$child\"' USR1",
            'wait "$child"; code=$?',
            'if [[ -n $warned ]]; then wait "$child"; code=$?; fi  # the signal had ended the first wait',
            f'if [[ $code == {AGAIN} ]]; then exec scontrol requeue "$task"; fi',
            'exit "$code"',
            "",
        ]
    )


def ranges(indices: Iterable[int]) -> str:
    """Sorted indices as SLURM writes them: 0-3,7."""
    groups = itertools.groupby(enumerate(sorted(indices)), key=lambda pair: pair[1] - pair[0])
    runs = [[index for _, index in group] for _, group in groups]
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def job_name(sweep: Sweep) -> str:
    """The name of a sweep's jobs."""
    return f"pvcbench-{sweep.path.name}"


def submit(sweep: Sweep, lines: Sequence[Line], resources: Resources, again: bool = False) -> list[int]:
    """Submits the lines that are neither finished nor queued nor running; returns their indices.

    `again` submits finished lines with failed cells, too. Raises UserError where SLURM is missing or refuses.
    """
    sweep.write(lines)
    with locks.alone(sweep.path) as alone:  # two submissions at once would queue everything twice
        if not alone:
            raise UserError(f"another process submits {sweep.path.name}: wait for it")
        states, waiting = queue(sweep), []
        for line in lines:
            progress = sweep.progress(line, states)
            if progress.state not in ("finished", "queued", "running") or (
                again and progress.state == "finished" and progress.failed
            ):
                waiting.append(line.index)
        if waiting:
            script = sweep.path / "array.sh"
            write_whole(script, array_script(sweep, waiting, resources, again, Path.cwd()))
            _sbatch(sweep, script, waiting, resources)
    return waiting


def _sbatch(sweep: Sweep, script: Path, waiting: Sequence[int], resources: Resources) -> None:
    """Submits the script and notes the job, so that the queue can be asked for it."""
    if shutil.which("sbatch") is None:
        one = shlex.join(["pvcbench", "sweep", "run", str(sweep.manifest)])
        raise UserError(f"there is no sbatch here: submit where SLURM is, or run lines one by one: {one} 0")
    command = ["sbatch", "--parsable", *resources.options, str(script)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise UserError(f"sbatch refused the array: {' '.join(answer.stderr.split())}")
    job = {"job": answer.stdout.strip().partition(";")[0], "lines": ranges(waiting)}
    job |= {"submitted": datetime.now(UTC).isoformat(timespec="seconds"), "command": command}
    with (sweep.path / "jobs.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(job) + "\n")


def queue(sweep: Sweep) -> dict[int, str]:
    """The lines that SLURM has, by index: queued or running. Empty where there is no SLURM."""
    path = sweep.path / "jobs.jsonl"
    if not path.exists() or shutil.which("squeue") is None:
        return {}
    jobs = {json.loads(line)["job"] for line in path.read_text(encoding="utf-8").splitlines()}
    command = ["squeue", "--noheader", "--array", f"--name={job_name(sweep)}", "--format=%F %K %T"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise UserError(f"squeue does not answer: {' '.join(answer.stderr.split())}")
    states = {}
    for line in answer.stdout.splitlines():
        job, index, state = line.split()
        if job in jobs and index.isdigit():
            waits = state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")
            states[int(index)] = "queued" if waits else "running"
    return states
