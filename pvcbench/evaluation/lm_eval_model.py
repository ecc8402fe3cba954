"""An lm-eval model whose every request goes through the compressed cache.

    python -m pvcbench.cli.lm_eval run --model pvcbench --model_args method=h2o,budget=0.25 --tasks arc_easy

From Python: `lm_eval.simple_evaluate(CompressedLM("ORG/NAME", method="h2o", budget=0.25), tasks=[...])`. lm-eval's own
`hf` model calls the network once without a cache for log-likelihoods, so no patch of the cache changes its numbers.
"""

from collections.abc import Sequence
from types import SimpleNamespace

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import postprocess_generated_text
from tqdm import tqdm

from pvcbench.config import compose as configuration
from pvcbench.engine.engine import Engine
from pvcbench.errors import UserError
from pvcbench.evaluation.cells import parse_budgets, points
from pvcbench.evaluation.lm_eval_requests import respond, together
from pvcbench.evaluation.preflight import prepare
from pvcbench.evaluation.shared_prefill import Protocol
from pvcbench.models import loading
from pvcbench.tasks.base import Sample, Task
from pvcbench.tasks.lm_eval.task import Part

SETTINGS = {"attention_mask", "do_sample", "temperature", "top_p", "top_k"}  # of generation that greedy may ignore


class Tokens(HFLM):
    """HFLM up to the tokens: tokenization, truncation, windows and stop strings are lm-eval's own; `answer` is not."""

    def answer(self, parts: Sequence[Part], silent: bool) -> list:
        """For each part `(log-likelihood, greedy)` or generated tokens."""
        raise TypeError(f"{type(self).__name__} does not answer")

    def _loglikelihood_tokens(self, requests, disable_tqdm=False, override_bs=None):
        answers = self.answer([self._part(*request) for request in requests], disable_tqdm)
        for (name, *_), answer in zip(requests, answers, strict=True):
            if name is not None:  # the windows of a rolling likelihood have none
                self.cache_hook.add_partial("loglikelihood", name, answer)
        return answers

    def _part(self, name, context: list[int], continuation: list[int]) -> Part:
        """A request as tokens, cut on the left to the model's length as HFLM cuts it."""
        if not 0 < len(continuation) <= self.max_length:
            text = "" if name is None else f" {name[1][:40]!r}"
            raise UserError(f"the continuation{text} has {len(continuation)} tokens, not 1 to {self.max_length}")
        whole = (context + continuation)[-(self.max_length + 1) :]
        protocol = "streaming" if name is None else "continuation"
        return Part(protocol, tuple(whole[: -len(continuation)]), tuple(continuation))

    def _model_generate(self, context, max_length, stop, **settings):
        others = sorted(set(settings) - SETTINGS)
        if settings.get("do_sample") or others:
            raise UserError(f"greedy decoding only: {', '.join(others) or 'do_sample=true'} cannot be asked for")
        part = Part("generate", tuple(context[0].tolist()), (), tuple(stop), max_length - context.shape[1])
        [tokens] = self.answer([part], True)
        return torch.cat((context, context.new_tensor([tokens])), 1)


class Recorder(Tokens):
    """Turns requests into tokens and answers none; it needs a tokenizer and no model."""

    def __init__(self, tokenizer, longest: int | None):
        config = SimpleNamespace(max_position_embeddings=longest)
        stub = SimpleNamespace(device=torch.device("cpu"), config=config)
        super().__init__(stub, backend="causal", tokenizer=tokenizer)
        self._seen: list[Part] = []

    def answer(self, parts, silent):
        self._seen += parts
        return [[] if part.protocol == "generate" else (0.0, False) for part in parts]

    def parts(self, instance: Instance) -> tuple[Part, ...]:
        """What has to be answered for a request."""
        self._seen = []
        try:
            getattr(self, instance.request_type)([instance], disable_tqdm=True)
        except AssertionError as error:
            raise UserError(f"lm-eval refuses a request of {instance.task_name}: {error}") from error
        return tuple(self._seen)

    def text(self, part: Part, tokens: Sequence[int]) -> str:
        """The text of a generation, cut at its stop strings."""
        return postprocess_generated_text(self.tok_decode(tokens), list(part.stop), None)


@register_model("pvcbench")
class CompressedLM(Tokens):
    """One method at one budget; all other arguments are HFLM's, and pretrained=smollm2 is the embedded model.

    `budget` is an integer (entries per KV head) or a float (share of the context). The model's attention is taken over
    until `release`. A response cache (`use_cache`) must be one file per method and budget, as lm-eval does not tell.
    """

    def __init__(
        self,
        pretrained="smollm2",
        method: str = "",
        budget: int | float = 0.25,
        decode: str = "grow",
        refeed_last: bool = False,
        seed: int = 0,
        device: str | None = None,
        batch_size: int | str = 1,
        **options,
    ):
        if not method:
            raise UserError("which method? name one of `python -m pvcbench list` as method=NAME, and a budget=")
        if str(batch_size) != "1":
            raise UserError("the pvcbench model answers one request at a time: leave batch_size=1")
        self._point = point_of(method, budget, decode)
        here = device is not None and (
            torch.cuda.is_available() or not device.startswith("cuda")
        )  # lm-eval says cuda:0
        device = configuration.device_of(device if here else "auto")
        if pretrained == "smollm2":
            embedded = loading.smollm2(device, options.pop("dtype", None))
            pretrained, options = embedded.model, {"tokenizer": embedded.tokenizer, **options}
        super().__init__(pretrained, device=device, **options)
        if self.backend != "causal":
            raise UserError("the pvcbench model runs decoder-only models")
        ends = loading.ends_of(self.model, self.tokenizer)
        self._loaded = loading.LoadedModel(self.model, self.tokenizer, {}, ends=ends)
        self._protocol = Protocol(True, refeed_last, decode, seed)
        self._engine = Engine(self.model)
        try:
            prepare(self._engine, [self._point], decode == "hold")
        except Exception:
            self.release()
            raise

    def release(self) -> None:
        """Gives the model back as it was."""
        self._engine.release()

    def answer(self, parts, silent):
        found, shared = [None] * len(parts), together(parts)
        for members in tqdm(shared, desc="Compressed contexts", disable=silent or len(shared) == 1):
            own = [parts[member] for member in members]
            if own[0].protocol not in self._point.method.protocols:
                known = ", ".join(self._point.method.protocols)
                raise UserError(f"{self._point.name} does not support the {own[0].protocol} protocol, only {known}")
            [row] = respond(
                self._engine,
                self._loaded,
                Task(),
                BLANK,
                own,
                [self._point],
                self._protocol,
                SimpleNamespace(step=nothing),
            )
            if row["error"] is not None:
                raise UserError(f"{self._point.name} at {self._point.label}: {row['error']}")
            for member, response in zip(members, row["responses"], strict=True):
                found[member] = response if own[0].protocol == "generate" else tuple(response)
        return found

    def get_model_info(self) -> dict:
        """HFLM's information and what decides the cache."""
        own = {"method": repr(self._point.method), "budget": self._point.label, "decode": self._protocol.decode}
        return super().get_model_info() | own | {"refeed_last": self._protocol.refeed_last}


class Replay(LM):
    """Answers requests by what was stored for each, so that lm-eval scores them without a model."""

    def __init__(self, answers: dict[int, object]):
        super().__init__()
        self.answers = answers  # by the id of the instance

    def loglikelihood(self, requests):
        return [self.answers[id(request)] for request in requests]

    loglikelihood_rolling = generate_until = loglikelihood


BLANK = Sample("", "", "", (), 0)


def nothing(share: float) -> None:
    """Progress is shown elsewhere."""


def point_of(method: str, budget: int | float, decode: str):
    """The cell of a method of conf/method; raises UserError."""
    methods = configuration.build_methods(configuration.composed([f"method={method}"]).methods)
    if decode not in ("grow", "hold"):
        raise UserError(f"decode must be grow or hold, not {decode!r}")
    return next(point for point in points(methods, parse_budgets([budget]), decode, ()) if point.name == method)
