"""What must hold before a run: prompts can be used, the engine fits the model, methods keep their contract.

A trial prefills a few random tokens, forks and, under hold, makes some steps, with `Engine.strict` set: every answer of
a method is asked for twice and held to the rules of `pvcbench/engine/answers.py`. What breaks one ends the run at once.
"""

from collections.abc import Mapping, Sequence

import torch

from pvcbench.engine import answers
from pvcbench.engine.decode import Decoder
from pvcbench.engine.engine import Engine
from pvcbench.engine.evict import Cell
from pvcbench.engine.model_check import check
from pvcbench.engine.passes import asked_passes
from pvcbench.errors import MethodError, NotFinite, OutOfReach, UserError
from pvcbench.evaluation.cells import Point
from pvcbench.evaluation.item import WorkItem
from pvcbench.evaluation.row import Protocol
from pvcbench.models.loaded import LoadedModel
from pvcbench.policy import Method, Shape
from pvcbench.tasks.base import Task

TOKENS, STEPS, SHARES = 96, 6, (0.5, 0.75, 0.9, 1.0)
HEAD, QUESTION = 3, 5  # of a trial's tokens, those before its context and those after


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
    shape, batch = engine.shape(tokens, HEAD, QUESTION), 1 if method.ragged_batch else 2
    asked, engine.strict = engine.strict, True
    try:
        for seed, share in enumerate(SHARES):
            generator = torch.Generator().manual_seed(seed)
            ids = torch.randint(1, engine.config.vocab_size, (batch, tokens + STEPS), generator=generator)
            try:
                run(engine, settled(method, int(share * tokens), shape, hold), ids.to(engine.device), tokens, shape)
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


def run(engine: Engine, cell: Cell, ids: torch.Tensor, tokens: int, shape: Shape | None = None) -> None:
    """Prefill, fork and some steps of a cell."""
    watching, draws = [] if cell.pruner is not None else [cell.method], torch.arange(len(ids))
    prefill = engine.prefill(ids[:, :tokens], watching, cell.pruner, draws, shape=shape, reach=ids.shape[1])
    decoder = Decoder(engine.call, engine.fork(prefill, [cell], STEPS), engine.backend)
    for number in range(tokens, tokens + STEPS):
        decoder.step(ids[:, number : number + 1])


def check_question(task: Task, protocol: Protocol, answers: bool, methods: Mapping[str, Method]) -> None:
    """Refuses protocols of a question for tasks that have none; `answers`: whether the model answers in words.

    Also methods that need the question where they would not see it.
    """
    for name, method in methods.items():
        if getattr(method, "needs_question", False) and not (protocol.query_aware and task.has_question):
            why = "leave query_aware=true" if task.has_question else f"task={task.name} has none: choose another task"
            raise UserError(f"{name} ranks entries by the question: {why}, or choose other methods by method=[...]")
        if getattr(method, "ends_at_budget", False) and not protocol.query_aware:
            raise UserError(f"{name} counts prompt and answer against one budget: leave query_aware=true")
    if not task.has_question and not protocol.query_aware:
        raise UserError(f"task={task.name} does not tell a context from a question: leave query_aware=true")
    if task.agnostic and protocol.query_aware:
        raise UserError(f"task={task.name} needs query_aware=false: {task.agnostic}")
    if protocol.refeed_last and not answers:
        raise UserError(f"task={task.name} generates nothing to score: leave refeed_last=false")
    check_turns(task, protocol, methods)


def check_turns(task: Task, protocol: Protocol, methods: Mapping[str, Method]) -> None:
    """Refuses what is not defined for conversations, and for questions by themselves what is defined for those only."""
    if not task.has_turns:
        for key, value in protocol.turns.items():
            told = str(value).lower()
            raise UserError(f"{key}={told} is for turns of a conversation, and task={task.name} has none: leave it out")
        return
    if protocol.decode == "hold":
        raise UserError(
            f"the turns of task={task.name} are added whole to what was compressed, and nothing of them is evicted: "
            "leave decode=grow"
        )
    if protocol.sampling is not None:
        raise UserError(f"the answers to turns of task={task.name} are greedy: leave sampling.temperature=null")
    if protocol.history == "golden":
        return
    if protocol.recompress:
        raise UserError("recompress=true reads every turn anew after golden answers: leave history=golden")
    for name, method in methods.items():
        if getattr(method, "reads", None) is not None:
            raise UserError(
                f"{name} reads what follows the prompt, which with history=model is not known before: leave "
                "history=golden, or choose other methods by method=[...]"
            )


def check_prompts(work: Sequence[WorkItem], loaded: LoadedModel, task: Task, protocol: Protocol) -> None:
    """Refuses, before anything runs, prompts longer than the model or without the end of a context that is needed."""
    longest = None if task.beyond else loaded.longest
    check_conversations(work)
    for item in work:
        sample, prompt, query_aware = item.sample, item.prompt, protocol.query_aware
        if not query_aware and not sample.context:
            raise UserError(f"sample {sample.id} has no context to compress, which query_aware=false needs")
        if not query_aware and prompt.context_tokens < 1:
            raise UserError(
                f"sample {sample.id}: context and question cannot be told apart in its prompt, which query_aware=false "
                "needs: raise task.max_length if that cut it, or leave the data set out"
            )
        most = protocol.most_tokens(sample, prompt)
        if longest is not None and most > longest:
            new = sample.max_new_tokens
            raise UserError(
                f"sample {sample.id} has {most - new} prompt tokens and {new} to generate, more than the "
                f"model's {longest}: {task.shorten}, or use another model"
            )


def check_conversations(work: Sequence[WorkItem]) -> None:
    """Refuses turns of one conversation that do not fit together: each may be answered again for the turns after it."""
    known = {}
    for sample in (item.sample for item in work if item.sample.turns):
        own = {name: getattr(sample, name) for name in ("context", "turns", "max_new_tokens", "stop")}
        first, other = known.setdefault(sample.context_id, (sample.id, own))
        for name, value in own.items():
            if value != other[name]:
                raise UserError(
                    f"samples {first} and {sample.id} are turns of the conversation {sample.context_id} with another "
                    f"{name} each: give them the same, or another context_id"
                )


def check_passes(engine: Engine, work: Sequence[WorkItem], loaded: LoadedModel, task: Task, protocol: Protocol) -> None:
    """Refuses, before anything runs, what methods would have the model read beyond the positions it was made for."""
    points = dict.fromkeys(point for item in work for point in item.points if point.method is not None)
    named = {one.method: one.name for one in points if type(one.method).passes is not Method.passes}
    longest = None if task.beyond else loaded.longest
    for item in work if named and longest is not None else ():
        prompt = item.prompt
        tokens = protocol.compressed(prompt) + (protocol.refeed_last and protocol.query_aware)
        shape = engine.shape(tokens, min(prompt.frame_tokens, tokens), protocol.question(prompt, tokens))
        ids = torch.tensor([prompt.ids[:tokens]])
        for method, passes in asked_passes(list(named), ids, shape, engine.writer, False).items():
            most = tokens + max(one.ids.shape[1] for one in passes)
            if most > longest:
                raise UserError(
                    f"sample {item.sample.id}: {named[method]} reads up to token {most}, beyond the prompt's {tokens} "
                    f"and the model's {longest}: {task.shorten}, or choose other methods by method=[...]"
                )


def check_reach(engine: Engine, work: Sequence[WorkItem], task: Task, protocol: Protocol) -> None:
    """Refuses, before anything runs, answers that grow across a change of the model's rotary tables."""
    known = {}
    for item in work:
        own = protocol.history == "model"  # one cache for all turns, however long their answers
        tokens = item.prompt.first_tokens if own else len(item.prompt.ids)
        most = max(protocol.most_tokens(item.sample, item.prompt) - 1, tokens)
        known.setdefault((tokens, most), item.sample.id)
    for (tokens, most), name in known.items():
        if engine.reach.differs(tokens, most):
            raise UserError(f"sample {name}: {engine.reach.refusal(tokens, most)} ({task.shorten})")
