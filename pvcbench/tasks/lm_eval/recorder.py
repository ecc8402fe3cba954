"""lm-eval's requests as tokens, recorded without a model, and stored answers played back to lm-eval's metrics."""

from collections.abc import Sequence
from types import SimpleNamespace

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import postprocess_generated_text

from pvcbench.errors import UserError
from pvcbench.tasks.lm_eval.requests import Part

SETTINGS = {"attention_mask", "do_sample", "temperature", "top_p", "top_k"}  # of generation that greedy may ignore
GREEDY = {"num_beams": 1}  # what asks for no more than greedy decoding is


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
        others = sorted({name for name, value in settings.items() if (name, value) not in GREEDY.items()} - SETTINGS)
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


class Replay(LM):
    """Answers requests by what was stored for each, so that lm-eval scores them without a model."""

    def __init__(self, answers: dict[int, object]):
        super().__init__()
        self.answers = answers  # by the id of the instance

    def loglikelihood(self, requests):
        return [self.answers[id(request)] for request in requests]

    loglikelihood_rolling = generate_until = loglikelihood
