"""What must hold before a run: the engine fits the model, and every method keeps its contract on a short prompt.

A trial prefills a few random tokens, forks and, under hold, makes some steps, with `Engine.strict` set: every answer of
a method is asked for twice and held to the rules of `pvcbench/engine/answers.py`. What breaks one ends the run at once.
"""

from collections.abc import Sequence

import torch

from pvcbench.engine import answers
from pvcbench.engine.decode import Decoder
from pvcbench.engine.engine import Engine
from pvcbench.engine.evict import Cell
from pvcbench.engine.model_check import check
from pvcbench.errors import MethodError, NotFinite, OutOfReach
from pvcbench.evaluation.cells import Point
from pvcbench.policy import Method, Shape

TOKENS, STEPS, SHARES = 96, 6, (0.5, 0.75, 0.9, 1.0)


def prepare(engine: Engine, points: Sequence[Point], hold: bool = False) -> None:
    """Checks the engine for what these cells need, then tries their methods; raises UserError or MethodError.

    `hold` where the run evicts after every token.
    """
    for point in points:
        if point.method is not None and not (isinstance(point.method, Method) and hashable(point.method)):
            raise MethodError(
                f"{point.name} is {point.method!r:.80}: a method is an object of a class that derives from "
                "pvcbench.policy.Method and is a frozen dataclass"
            )
    methods = list(dict.fromkeys(point.method for point in points if point.method is not None))
    rotates = any(method.positions == "cache" for method in methods)
    check(engine, rotates, any(method.needs_queries for method in methods))
    for method in methods:
        if not method.reference:
            try_method(engine, method, hold)


def hashable(value) -> bool:
    """Whether a value can be the key of a dictionary, as methods are."""
    try:
        hash(value)
    except TypeError:
        return False
    return True


@torch.inference_mode()
def try_method(engine: Engine, method: Method, hold: bool = False) -> None:
    """Runs a method on a short prompt at the first share of it that it reaches; raises MethodError.

    What the user is to blame for passes as it is.
    """
    windows = [] if engine.evict_sliding else [window for window in engine.windows if window is not None]
    tokens = min([TOKENS, *windows])
    shape, batch = engine.shape(tokens), 1 if method.ragged_batch else 2
    asked, engine.strict = engine.strict, True
    try:
        for seed, share in enumerate(SHARES):
            generator = torch.Generator().manual_seed(seed)
            ids = torch.randint(1, engine.config.vocab_size, (batch, tokens + STEPS), generator=generator)
            try:
                run(engine, settled(method, int(share * tokens), shape, hold), ids.to(engine.device), tokens)
                return
            except (OutOfReach, NotFinite, MemoryError, torch.OutOfMemoryError):
                continue  # nothing to judge the method by; its cells will say so, and the rules hold there too
    except answers.THEIRS:
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise MethodError(f"{type(method).__name__} cannot be run on {tokens} tokens: {text}") from error
    finally:
        engine.strict = asked


def settled(method: Method, budget: int, shape: Shape, hold: bool) -> Cell:
    """A cell of the method, with what depends on the budget resolved."""
    own = method.own_budget is not None
    found = answers.ask(method, "resolve", None if own else budget, shape)
    if not isinstance(found, Method):
        raise answers.wrong(method, "resolve", answers.told(found), "a method (self, or a changed copy)")
    return Cell("trial", found, None if own else budget, hold and "hold" in method.decodes)


def run(engine: Engine, cell: Cell, ids: torch.Tensor, tokens: int) -> None:
    """Prefill, fork and some steps of a cell."""
    watching = [] if cell.pruner is not None else [cell.method]
    prefill = engine.prefill(ids[:, :tokens], watching, cell.pruner, torch.arange(len(ids)), reach=ids.shape[1])
    decoder = Decoder(engine.call, engine.fork(prefill, [cell], STEPS), engine.backend)
    for number in range(tokens, tokens + STEPS):
        decoder.step(ids[:, number : number + 1])
