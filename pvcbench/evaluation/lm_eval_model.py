"""An lm-eval model whose every request goes through the compressed cache.

    pvcbench lm-eval run --model pvcbench --model_args method=h2o,budget=0.25 --tasks arc_easy

From Python: `lm_eval.simple_evaluate(CompressedLM("ORG/NAME", method="h2o", budget=0.25), tasks=[...])`. lm-eval's own
`hf` model calls the network once without a cache for log-likelihoods, so no patch of the cache changes its numbers.
"""

from types import SimpleNamespace

import torch
from lm_eval.api.registry import register_model
from tqdm import tqdm

from pvcbench.config import building, processors
from pvcbench.config import compose as configuration
from pvcbench.engine.engine import Engine
from pvcbench.errors import UserError
from pvcbench.evaluation.cells import parse_budgets, points
from pvcbench.evaluation.lm_eval_requests import respond, together
from pvcbench.evaluation.preflight import prepare
from pvcbench.evaluation.row import Protocol
from pvcbench.models import embedded, loaded
from pvcbench.tasks.base import Sample, Task
from pvcbench.tasks.lm_eval.recorder import Tokens


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
            raise UserError("which method? name one of `pvcbench list` as method=NAME, and a budget=")
        if str(batch_size) != "1":
            raise UserError("the pvcbench model answers one request at a time: leave batch_size=1")
        self._point = point_of(method, budget, decode)
        here = device is not None and (
            torch.cuda.is_available() or not device.startswith("cuda")
        )  # lm-eval says cuda:0
        device = processors.device_of(device if here else "auto")
        if pretrained == "smollm2":
            own = embedded.smollm2(device, options.pop("dtype", None))
            pretrained, options = own.model, {"tokenizer": own.tokenizer, **options}
        super().__init__(pretrained, device=device, **options)
        if self.backend != "causal":
            raise UserError("the pvcbench model runs decoder-only models")
        ends = loaded.ends_of(self.model, self.tokenizer)
        self._loaded = loaded.LoadedModel(self.model, self.tokenizer, {}, ends=ends)
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


BLANK = Sample("", "", "", (), 0)


def nothing(share: float) -> None:
    """Progress is shown elsewhere."""


def point_of(method: str, budget: int | float, decode: str):
    """The cell of a method of conf/method; raises UserError."""
    methods = building.build_methods(configuration.composed([f"method={method}"]).methods)
    methods[method].validate(f"methods.{method}")
    if decode not in ("grow", "hold"):
        raise UserError(f"decode must be grow or hold, not {decode!r}")
    return next(point for point in points(methods, parse_budgets([budget]), decode, ()) if point.name == method)
