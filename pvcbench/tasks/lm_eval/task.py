"""Tasks of lm-eval (0.4.13 or newer), every request answered through the compressed cache.

    python -m pvcbench task=lm_eval 'task.tasks=[arc_easy,piqa]' task.per_task=50 method=h2o
    python -m pvcbench task=lm_eval task.include_path=FOLDER        # your own YAML tasks

A sample is one document with all its requests, which lm-eval builds once with its own seeds. A log-likelihood is
scored through the cache of the compressed context (all but its last token, which is fed), a generation decodes on it,
and a rolling likelihood, which has no context, reads the text under the budget. lm-eval scores each document, and at
the end, in `lm_eval.json`, each cell as a whole; both from the stored responses alone.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from pvcbench.config.extras import pip_install
from pvcbench.errors import UserError
from pvcbench.places import user_path
from pvcbench.tasks.base import Sample, Task, flag, whole, words
from pvcbench.tasks.lm_eval import loading
from pvcbench.tasks.lm_eval import scoring as scores
from pvcbench.tasks.lm_eval.requests import Part
from pvcbench.tasks.prompts import Prompt


class LmEval(Task):
    """Documents of lm-eval tasks: the first of each task, then the second of each, and so on."""

    name, version, kind, has_question, beyond, primary = "lm_eval", 1, "lm_eval", False, True, "score"

    def __init__(
        self,
        tasks: Sequence[str] | str = (),
        include_path: str | None = None,
        num_fewshot: int | None = None,
        apply_chat_template: bool = False,
        per_task: int | None = None,
    ):
        if importlib.util.find_spec("lm_eval") is None:
            raise UserError(f"task=lm_eval needs the lm-eval package: {pip_install('eval')}")
        self.tasks = words("task.tasks", tasks)
        if include_path is not None and not (isinstance(include_path, str | os.PathLike) and str(include_path)):
            raise UserError(f"task.include_path must be a folder or null, not {include_path!r}")
        self._folder = None if include_path is None else user_path(include_path)
        if self._folder is not None and not self._folder.is_dir():
            raise UserError(f"task.include_path: there is no folder {include_path}")
        if not self.tasks and self._folder is None:
            raise UserError("which lm-eval tasks? set task.tasks=[NAME,...] or task.include_path=FOLDER of YAML tasks")
        self.num_fewshot = None if num_fewshot is None else whole("task.num_fewshot", num_fewshot, 0)
        self.per_task = None if per_task is None else whole("task.per_task", per_task)
        self.apply_chat_template = flag("task.apply_chat_template", apply_chat_template)
        self._built: dict[bool, list[loading.Document]] = {}
        self._tokens: dict[str, tuple[tuple[Part, ...], ...]] = {}

    @property
    def protocols(self) -> tuple[str, ...]:
        return loading.protocols_of(self._documents(False))

    @cached_property
    def _loaded(self) -> loading.Loaded:
        return loading.Loaded(self.tasks, self._folder, self.num_fewshot)

    def _documents(self, chat: bool) -> list[loading.Document]:
        """All documents with lm-eval's requests; with `chat` in the chat template of the prepared tokenizer."""
        if chat not in self._built:
            template = self._in_template if chat else None
            self._built[chat] = self._loaded.documents(self.per_task, template)
        return self._built[chat]

    def _in_template(self, turns: list[dict], add_generation_prompt: bool = True) -> str:
        """A conversation in the model's chat template; a template that refuses system messages gets none."""
        options = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
        try:
            return self.prompter.template.render(turns, **options)
        except UserError:
            return self.prompter.template.render([turn for turn in turns if turn["role"] != "system"], **options)

    @property
    def thinking(self) -> str | None:
        return self.prompter.template.thinking if self.apply_chat_template else None

    @cached_property
    def _recorder(self):
        from pvcbench.tasks.lm_eval.recorder import Recorder

        with loading.quiet():
            return Recorder(self.prompter.tokenizer, self.prompter.longest)

    def prepare(self, prompter) -> None:
        super().prepare(prompter if self.apply_chat_template else prompter.with_chat(False))
        if self.apply_chat_template and getattr(prompter.tokenizer, "chat_template", None) is None:
            raise UserError("this tokenizer has no chat template: set task.apply_chat_template=false")
        first: dict[str, str] = {}
        self._by_id = {document.id: document for document in self._documents(self.apply_chat_template)}
        self._cluster = {  # documents that ask about the same text belong together
            name: first.setdefault(str(document.instances[0].args[0]) or name, name)
            for name, document in self._by_id.items()
        }
        self._ids = list(self._by_id)

    def data_checksum(self) -> str:
        digest = hashlib.sha256(importlib.metadata.version("lm_eval").encode())
        for task in self._loaded.tasks.values():
            settings = {key: value for key, value in task.dump_config().items() if key != "dataset_kwargs"}
            text = json.dumps(settings, sort_keys=True, default=str)
            digest.update(re.sub(r" at 0x[0-9a-f]+", "", text).encode())  # functions say where they lie in memory
        for document in self._documents(False):
            content = [[item.request_type, item.arguments, item.doc] for item in document.instances]
            digest.update(json.dumps([document.id, content], sort_keys=True, default=str).encode())
        return digest.hexdigest()

    def size(self, seed: int) -> int:
        return len(self._ids)

    def sample(self, seed: int, index: int) -> Sample:
        document = self._by_id[self._ids[index]]
        task, first = self._loaded.tasks[document.task], document.instances[0]
        gold = () if first.request_type == "loglikelihood_rolling" else (str(task.doc_to_target(first.doc)),)
        info = {"doc_id": document.number, "requests": len(document.instances), "type": first.request_type}
        cluster = self._cluster[document.id]
        return Sample(document.id, "", "", gold, 0, cluster=cluster, stratum=document.task, info=info)

    def requests(self, sample: Sample) -> tuple[tuple[Part, ...], ...]:
        """The parts of each request of a document: one, or the windows of a rolling likelihood."""
        if sample.id not in self._tokens:
            parts = tuple(self._recorder.parts(instance) for instance in self._by_id[sample.id].instances)
            if not all(parts):
                raise UserError(f"{sample.id} has an empty text: leave it out (task.per_task takes the first ones)")
            self._tokens[sample.id] = parts
        return self._tokens[sample.id]

    def encode(self, sample: Sample) -> Prompt:
        """The first context of the document."""
        context = self.requests(sample)[0][0].context
        return Prompt(context, len(context))

    def text(self, part: Part, tokens: Sequence[int]) -> str:
        """Generated tokens as lm-eval's model would hand them on."""
        return self._recorder.text(part, tokens)

    def measured(self, sample: Sample, responses: Sequence) -> dict:
        """The columns of an answered document: lm-eval's filters and metrics on its responses."""
        document = self._by_id[sample.id]
        with loading.quiet(bars=False):
            return scores.document(self._loaded.tasks[document.task], document, responses)

    def finish(self, rows, folder: Path) -> None:
        """Writes lm_eval.json: for every cell of the rows lm-eval's results over the documents without an error."""
        cells = []
        for (method, budget), cell in rows.groupby(["method", "budget"], sort=False):
            good = cell[cell["error"].isna()]
            entry = {"method": method, "budget": budget, "documents": len(good), "failed": len(cell) - len(good)}
            stored = dict(zip(good["sample"], good["responses"], strict=True))
            known = [(self._by_id[name], responses) for name, responses in stored.items() if name in self._by_id]
            with loading.quiet(bars=False):
                cells.append(entry | scores.cell(self._loaded.tasks, self._loaded.groups, known))
        scores.write(folder / "lm_eval.json", {"lm_eval": importlib.metadata.version("lm_eval"), "cells": cells})
