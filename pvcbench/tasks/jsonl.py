"""Your own data: a file with one JSON object per line.

    {"context": "...", "question": "...", "answers": ["..."], "metric": "contains", "id": "a", "cluster": "doc1"}

`metric`, `id` and `cluster` are optional; `needle` names a passage of the context whose survival is recorded.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from pvcbench.errors import UserError
from pvcbench.tasks.base import Sample, Task, choice
from pvcbench.tasks.metrics import any_found, exact, share_found, token_f1

METRICS = {"contains": any_found, "contains_all": share_found, "exact": exact, "f1": token_f1}


class Jsonl(Task):
    """Samples in the order of the file; each is scored by its line's metric or the task's."""

    name, version, primary, shorten = "jsonl", 1, "score", "shorten its context"

    def __init__(
        self,
        path: str,
        metric: str = "contains",
        max_new_tokens: int = 64,
        stop: Sequence[str] = (),
        name: str = "jsonl",
    ):
        if not path:
            raise UserError("which file? set task.path=FILE, one JSON object per line: context, question, answers")
        self.path, self.stop, self.max_new_tokens = Path(path).expanduser(), tuple(stop), max_new_tokens
        self.metric = choice("task.metric", metric, tuple(METRICS))

    def _bytes(self) -> bytes:
        """The file, which scoring stored rows again does not need."""
        if not self.path.is_file():
            raise UserError(f"task.path: there is no file {self.path}")
        return self.path.read_bytes()

    @cached_property
    def items(self) -> list[dict]:
        items = []
        for number, line in enumerate(self._bytes().split(b"\n"), start=1):
            if line.strip():
                items.append(self._item(number, line))
        if not items:
            raise UserError(f"{self.path} holds no samples")
        if len({item["id"] for item in items}) < len(items):
            raise UserError(f"{self.path}: two lines have the same id")
        return items

    def _item(self, number: int, line: bytes) -> dict:
        where = f"{self.path}, line {number}"
        try:
            item = json.loads(line)
            answers = [item["answers"]] if isinstance(item["answers"], str) else list(item["answers"])
            item |= {"answers": [str(answer) for answer in answers], "context": str(item["context"])}
            item["question"] = str(item["question"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{where}: needs a JSON object with context, question and answers ({error})") from error
        if not item["answers"]:
            raise UserError(f"{where}: answers is empty")
        choice(f"{where}: metric", item.get("metric", self.metric), tuple(METRICS))
        if item.get("needle") and item["needle"] not in item["context"]:
            raise UserError(f"{where}: the needle does not occur in the context")
        return item | {"id": str(item.get("id", number))}

    def size(self, seed: int) -> int:
        return len(self.items)

    def data_checksum(self) -> str:
        return hashlib.sha256(self._bytes()).hexdigest()

    def sample(self, seed: int, index: int) -> Sample:
        item = self.items[index]
        start = item["context"].find(item["needle"]) if item.get("needle") else -1
        return Sample(
            id=item["id"],
            cluster=str(item.get("cluster", "")),
            context=item["context"].strip(),
            question=item["question"].strip(),
            answers=tuple(item["answers"]),
            max_new_tokens=self.max_new_tokens,
            stop=self.stop,
            spans={} if start < 0 else {"needle": (start, start + len(item["needle"]))},
            metric=item.get("metric", self.metric),
        )

    def score(self, sample: Sample, output: str) -> dict[str, float]:
        return {sample.metric: METRICS[sample.metric](sample.answers, output)}
