"""What methods, model families and protocols give on a device, beside the same on a CPU: sections of gpu_check.py.

Models are tiny and of random weights, in float32 on both sides, so that only the order of sums differs. Imports torch,
transformers and pvcbench's engine alone.
"""

import importlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from methods.h2o import H2O
from pvcbench.architectures import families
from pvcbench.engine.decode import Decoder
from pvcbench.engine.engine import Engine
from pvcbench.engine.evict import Cell
from pvcbench.engine.passes import Writer
from pvcbench.errors import OutOfReach, UserError
from pvcbench.policy import Method

METHODS = Path(__file__).resolve().parent.parent / "methods"
NAMES = (
    "llama",
    "gemma3_text",
    "qwen3",
    "mistral",
    "gpt_oss",
    "deepseek_v3",
    "qwen3_next",
    "gemma4_text",
    "llama4_text",
)
TOKENS, STEPS, SHARE = 240, 6, 0.5
FULL = Cell("full", Method(), None, everything=True)
NEAR = 1e-3  # logits of two devices, of their range: float32 sums in another order
ALIKE = 0.97  # of kept sets: entries of nearly equal score change places


def shipped() -> Iterator[tuple[str, Method | str]]:
    """Every method of the folder by its class, with its own defaults, or the reason why it cannot be made of them."""
    for path in sorted(METHODS.glob("[a-z]*.py")):
        module = importlib.import_module(f"methods.{path.stem}")
        for kind in vars(module).values():
            if not (isinstance(kind, type) and issubclass(kind, Method) and kind.__module__ == module.__name__):
                continue
            if kind.reference or kind.ends_at_budget or not hasattr(kind, "__dataclass_fields__"):
                continue
            try:
                method = kind()
            except (TypeError, UserError) as error:
                yield kind.__name__, str(error)
                continue
            if kind.scores is not Method.scores or method.prunes:  # else a part of others
                yield kind.__name__, "it reads a file of a model" if method.unnamed else method


def model_of(name: str, device: torch.device, seed: int = 0) -> nn.Module:
    """A tiny model of a family on a device; the same weights on every device."""
    return families.build(name, torch.float32, seed).to(device)


@torch.inference_mode()
def kept(engine: Engine, ids: torch.Tensor, method: Method, hold: bool) -> tuple[list[set[int]], torch.Tensor]:
    """The positions that each head of each layer has after some steps behind a prompt, and the steps' logits."""
    tokens = ids.shape[1] - STEPS
    shape, prompt = engine.shape(tokens, 2, 12), ids[:, :tokens].to(engine.device)
    budget = None if method.own_budget else int(SHARE * tokens)
    method = method.resolve(budget, shape)
    cell = Cell("cell", method, budget, hold)
    watching, pruner = ([], method) if cell.pruner else ([method], None)
    prefill = engine.prefill(prompt, watching, pruner, torch.arange(1), shape=shape, reach=ids.shape[1])
    groups = engine.fork(prefill, [cell], STEPS)
    decoder = Decoder(engine.call, groups, engine.backend)
    steps = [decoder.step(ids[:, place : place + 1].to(engine.device)) for place in range(tokens, ids.shape[1])]
    last = [layer.positions[0, :, : layer.filled].tolist() for layer in groups[0].layers]
    return [set(head) - {-1} for layer in last for head in layer], torch.stack(steps).cpu()


def overlap(ours: list[set[int]], theirs: list[set[int]]) -> float:
    """The share of a head's entries that both sides have, the least of all heads."""
    return min(len(own & other) / max(1, len(other)) for own, other in zip(ours, theirs, strict=True))


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference of logits, of their range."""
    return ((ours - theirs).abs().max() / (theirs.max() - theirs.min())).item()


def engines(name: str, device: torch.device) -> list[Engine]:
    """A family's engine on the device, by its kernels where it is a GPU, and the same model's on the CPU."""
    backend = "triton" if device.type == "cuda" else "blocked"
    cpu = Engine(model_of(name, torch.device("cpu")), writer=Writer.of_bytes())
    return [Engine(model_of(name, device), backend=backend, writer=Writer.of_bytes()), cpu]


def every_method(setup, result) -> None:
    """Every method that needs no file: the entries it keeps, and logits after steps under each decode policy."""
    pair, ids = engines("llama", setup.device), families.prompt(TOKENS + STEPS, 1)
    lines, skipped = {}, {}
    for name, method in shipped():
        if isinstance(method, str):
            skipped[name] = method
            continue
        for hold in [policy == "hold" for policy in method.decodes]:
            try:
                (ours, mine), (theirs, own) = (kept(engine, ids, method, hold) for engine in pair)
            except (OutOfReach, UserError) as error:
                skipped[name] = str(error)
                continue
            line = {"overlap": round(overlap(ours, theirs), 4), "logits": float(f"{apart(mine, own):.1e}")}
            same = ours == theirs  # logits can be compared where the entries are the same ones
            line["passed"] = line["overlap"] >= ALIKE and (line["logits"] <= NEAR or not same)
            lines[f"{name}, {'hold' if hold else 'grow'}"] = line
    result |= {"compared": len(lines), "skipped": skipped}
    result["least_overlap"] = min(line["overlap"] for line in lines.values())
    result["wrong"] = {name: line for name, line in lines.items() if not line["passed"]}
    result["passed"] = not result["wrong"]


@torch.inference_mode()
def every_family(setup, result) -> None:
    """The full cache of each family, prompt and steps, against the unmodified model on the device."""
    names = NAMES[:2] if setup.small else NAMES
    ids, lines = families.prompt(TOKENS + STEPS, 1), {}
    for name in names:
        model = model_of(name, setup.device)
        theirs = model(input_ids=ids.to(setup.device), use_cache=False).logits[:, TOKENS - 1 :].cpu()
        engine = Engine(model)
        prefill = engine.prefill(ids[:, :TOKENS].to(setup.device), reach=ids.shape[1])
        decoder = Decoder(engine.call, engine.fork(prefill, [FULL], STEPS))
        steps = [decoder.step(ids[:, place : place + 1].to(setup.device)) for place in range(TOKENS, ids.shape[1])]
        ours = torch.stack([prefill.logits, *steps], 1).cpu()
        lines[name] = {"logits": float(f"{apart(ours, theirs):.1e}")}
        lines[name]["passed"] = lines[name]["logits"] <= NEAR
        engine.release()
    result |= lines | {"passed": all(line["passed"] for line in lines.values())}


def every_protocol(setup, result) -> None:
    """Ways of a sample through the engine: a question, copies for several, intervals, chunks, a stream, a score."""
    found = [ways(engine, H2O()) for engine in engines("llama", setup.device)]
    lines = {}
    for name, ours in found[0].items():
        lines[name] = float(f"{apart(ours, found[1][name]):.1e}")
    result |= lines | {"passed": max(lines.values()) <= NEAR}


@torch.inference_mode()
def ways(engine: Engine, method: Method) -> dict[str, torch.Tensor]:
    """What each way gives on one prompt: logits or log-likelihoods, on the CPU."""
    ids, found = families.prompt(TOKENS + STEPS, 1)[:1].to(engine.device), {}
    prompt, rest = ids[:, :TOKENS], ids[:, TOKENS:]

    def forked(hold=False, interval=1, chunk=None, room=4 * STEPS):
        engine.chunk = chunk
        cell = Cell("cell", method.resolve(64, engine.shape(TOKENS)), 64, hold, interval=interval)
        prefill = engine.prefill(prompt, [cell.method], None, torch.arange(1), reach=ids.shape[1])
        engine.chunk = None
        return engine.fork(prefill, [cell], room)

    found["question"] = Decoder(engine.call, forked(), engine.backend).step(rest)
    copies = [group.repeated(3) for group in forked()]
    found["copies"] = Decoder(engine.call, copies, engine.backend).step(rest.repeat(3, 1))
    found["chunks"] = Decoder(engine.call, forked(chunk=33), engine.backend).step(rest)
    decoder = Decoder(engine.call, forked(hold=True, interval=4), engine.backend)
    found["interval"] = torch.stack([decoder.step(rest[:, place : place + 1]) for place in range(STEPS)])
    found["score"] = engine.score(forked(), rest[:, :-1], rest[:, 1:]).logprobs
    found["stream"] = engine.stream(ids, Cell("cell", method, 64, hold=True), 1, torch.arange(1))[0].logprobs
    return {name: value.float().cpu() for name, value in found.items()}
