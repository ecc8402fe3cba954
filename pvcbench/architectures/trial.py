"""Tries one architecture: its tiny model must pass the engine's check, run every method and match `generate`.

family = run("qwen3_next", methods)
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from pvcbench.architectures import families
from pvcbench.architectures.support import REFUSED, RUNS, UNKNOWN, Family
from pvcbench.config import building, compose
from pvcbench.engine.decode import Decoder
from pvcbench.engine.engine import Engine
from pvcbench.engine.evict import Cell
from pvcbench.engine.layout import first_position, sharing
from pvcbench.engine.model_check import TOLERANCE, check
from pvcbench.engine.passes import Writer
from pvcbench.errors import MethodError, UserError
from pvcbench.evaluation.cells import Point
from pvcbench.evaluation.preflight import prepare
from pvcbench.policy import Method

TOKENS, STEPS, CHUNK, SHARE = 40, 8, 7, 0.5
FULL = Cell("full", Method(), None, everything=True)


def own_methods() -> dict[str, Method]:
    """Every method of conf/method that runs as it stands, without a file that would fit one model only."""
    names = compose.complete("method")
    methods = building.build_methods(compose.composed([f"method=[{','.join(names)}]"]).methods)
    return {name: methods[name] for name in names if not (methods[name].unnamed or methods[name].ends_at_budget)}


def said(error: Exception) -> str:
    """An error in one line, with its kind where it is no word to a user."""
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, UserError | MethodError) else f"{type(error).__name__}: {text}"


def run(name: str, methods: Mapping[str, Method]) -> Family:
    """The trial of a family by its name, on its tiny model in float32, compared in float64 where it has one."""
    kind = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[families.type_of(name)]
    try:
        model = families.build(name)
    except Exception as error:
        return Family(name, kind, UNKNOWN, f"transformers does not build its tiny model: {said(error)}")
    known = of_model(name, model, methods)
    if known.verdict != RUNS:
        return known
    try:
        known = replace(known, **precision(name))
        if known.error <= TOLERANCE[getattr(torch, known.dtype)]:
            return known
        return replace(known, verdict=REFUSED, reason=f"the engine's logits differ by {known.error:.0e} of their range")
    except Exception as error:  # it passed the check of its short prompt
        return replace(known, verdict=REFUSED, reason=f"its comparison with the unmodified model failed: {said(error)}")


def kinds_of(config) -> dict[str, int]:
    """Layers by kind, as the configuration tells them; those that read the entries of others are one more kind."""
    text = config.get_text_config(decoder=True)
    kinds = getattr(text, "layer_types", None)
    if not kinds and getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True):
        kinds = ["sliding_attention"] * text.num_hidden_layers
    kinds = list(kinds or ["full_attention"] * getattr(text, "num_hidden_layers", 1))
    modes = sharing(text) or [None] * len(kinds)
    return dict(Counter("shared_cache" if mode == "reuse" else kind for kind, mode in zip(kinds, modes, strict=True)))


def of_model(name: str, model: nn.Module, methods: Mapping[str, Method]) -> Family:
    """The trial of a model that is there: whether the engine takes it, what evicts, and which methods it refuses."""
    kind, kinds, before = type(model).__name__, kinds_of(model.config), model.config._attn_implementation
    engine = None
    try:
        engine = Engine(model, writer=Writer.of_bytes())
        check(engine)
        evicted = len(engine.shape(shortest(engine)).evicted)
    except Exception as error:
        return Family(name, kind, REFUSED, said(error), kinds)
    else:
        return Family(name, kind, RUNS, None, kinds, evicted, refusals(engine, methods))
    finally:
        if engine is not None:
            engine.release()
        elif model.config._attn_implementation != before:
            model.set_attn_implementation(before)


def shortest(engine: Engine) -> int:
    """A prompt's length at which some layer evicts: longer than the windows, unless every layer slides."""
    try:
        engine.shape(TOKENS)
    except UserError:
        return families.WINDOW
    return TOKENS


def refusals(engine: Engine, methods: Mapping[str, Method]) -> dict[str, str]:
    """The methods that do not run on a model, and why."""
    found = {name: refusal(engine, name, method) for name, method in methods.items()}
    return {name: reason for name, reason in found.items() if reason is not None}


def refusal(engine: Engine, name: str, method: Method) -> str | None:
    """Why a method does not run on a model; by both decode policies where it supports both."""
    point, reasons = Point(name, method, method.own_budget or str(SHARE), None if method.own_budget else SHARE), []
    for hold in [True, False] if "hold" in method.decodes else [False]:
        try:
            prepare(engine, [point], hold)
        except Exception as error:
            crashed = not isinstance(error, UserError) and error.__cause__ is not None
            reasons.append(f"it fails on this model ({type(error.__cause__).__name__})" if crashed else said(error))
        else:
            return f"under decode=hold: {reasons[0]}" if reasons else None
    return reasons[-1]


def precision(name: str) -> dict:
    """How the engine compares with the unmodified model, and the dtype this was found in."""
    try:
        model = families.build(name, torch.float64)
        with families.unrounded():
            return differences(model) | {"dtype": "float64"}
    except Exception:  # not every model has all of its parts in float64
        return differences(families.build(name)) | {"dtype": "float32"}


@torch.inference_mode()
def differences(model: nn.Module) -> dict:
    """The largest difference of logits, of their range, over a prompt and the steps after it, and what else compares.

    A prompt read in chunks counts where it gives the same logits; `chunked` says whether. `generated` says whether the
    greedy tokens through the full cache are those of the unmodified model's `generate`.
    """
    engine = Engine(model)
    tokens = shortest(engine)
    engine.release()
    ids = families.prompt(TOKENS + STEPS, 2)[:, : tokens + STEPS]
    prompt = ids[:, :tokens]
    origin, _ = first_position(model)
    places = {"position_ids": torch.arange(origin, origin + tokens).expand(2, -1)} if origin else {}  # else from 0
    options = places | {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False, "pad_token_id": 0}
    theirs = model(input_ids=ids, use_cache=False).logits[:, tokens - 1 :]
    model.generation_config.forced_eos_token_id = None  # some models' answers end with a token that they did not choose
    written = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)[:, tokens:]
    engine = Engine(model)
    try:
        groups = engine.fork(engine.prefill(prompt, reach=tokens + STEPS), [FULL], STEPS)
        [answers], _ = engine.greedy(groups, feed=None, new_tokens=STEPS, ends=())
        worst = apart(engine, ids, tokens, theirs)
        engine.chunk = CHUNK
        try:
            in_chunks = apart(engine, ids, tokens, theirs)
        except Exception:  # the check of a run that reads in chunks refuses it in its own words
            in_chunks = float("inf")
    finally:
        engine.release()
    chunked = in_chunks <= TOLERANCE[theirs.dtype]
    worst = max(worst, in_chunks) if chunked else worst
    return {"error": float(f"{worst:.1e}"), "chunked": chunked, "generated": answers == written.tolist()}


def apart(engine: Engine, ids: torch.Tensor, tokens: int, theirs: torch.Tensor) -> float:
    """How far the engine's logits lie from the model's own at most, of their range: after the prompt and each step."""
    prefill = engine.prefill(ids[:, :tokens], reach=ids.shape[1])
    decoder = Decoder(engine.call, engine.fork(prefill, [FULL], ids.shape[1] - tokens))
    steps = [decoder.step(ids[:, number : number + 1]) for number in range(tokens, ids.shape[1])]
    ours = torch.stack([prefill.logits, *steps], 1)
    return ((ours - theirs).abs().max() / (theirs.max() - theirs.min())).item()
