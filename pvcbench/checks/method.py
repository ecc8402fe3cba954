"""The exactness properties of a method, each a function that returns None, or says why it does not apply, or raises.

    for outcome in check_method(Mine(ratio=0.3)):
        print(outcome.name, outcome.result, outcome.line)

A failure is one line: what is wrong, where, what to do. The first two checks are about every single answer of the
method; where one of them fails, the others are not run, since they could only say the same in other words.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, is_dataclass, replace

import torch

from pvcbench.checks import subject as bench
from pvcbench.checks.memory import held_by
from pvcbench.checks.reference import dense_masks, fork, positions, ranks_of, teach
from pvcbench.checks.subject import GROUPED, MIXED, MODELS, MULTI, Subject
from pvcbench.engine import answers
from pvcbench.engine.engine import Engine
from pvcbench.engine.evict import Cell, Group
from pvcbench.engine.prefill import Prefill
from pvcbench.engine.streaming import BLOCK
from pvcbench.errors import MethodError, NotFinite, OutOfReach, UserError
from pvcbench.evaluation import preflight
from pvcbench.policy import Method

CLOSE, STEPS, CHUNK, FEW = 1e-9, 6, 17, 2  # float64 logits of size 5 come out within 1e-13 of each other
TITLES = {
    "shape": "wrong shape",
    "dtype": "wrong dtype",
    "NaN": "NaN",
    "infinite": "scores protected entries",
    "protected": "drops protected entries",
    "unsteady": "not deterministic",
    "state": "keeps state between calls",
    "writes": "writes into what it is shown",
    "plan": "wrong plan",
    "budget": "misses its budget",
    "raises": "stops with an error",
    "future": "looks at the future",
    "reach": "reaches no budget",
    "answer": "wrong answer",
    "differs": "not exact",
}
ADVICE = {
    "shape": "return one number for each entry that `seen` has; seen.grouped_mass() sums a KV head's query heads",
    "dtype": "return .float() or .double() of the scores",
    "NaN": "look for 0 / 0, log(0) and a mean over nothing; clamp the divisor",
    "infinite": "return finite scores and name in protects() how many first and last tokens always stay",
    "protected": "leave the first and last tokens alone that protects() names",
    "unsteady": "draw from seen.draws and seen.positions (as methods/random.py), never from a global generator",
    "state": "a method holds settings alone; what must be remembered goes through accumulate() into seen.totals",
    "raises": "seen.mass is None unless row_weights() returns weights, seen.totals unless accumulate() does",
    "future": "slots whose position is -1 hold no entry yet: mask them by seen.positions >= 0 in every mean and sum",
    "budget": "plan() says how many entries stay, mean over KV heads and evicted layers",
    "reach": "resolve() raises OutOfReach only where the budget cannot be met",
}


class Wrong(Exception):
    """A property does not hold: `fault` is a key of TITLES."""

    def __init__(self, fault: str, told: str):
        super().__init__(told)
        self.fault = fault


@dataclass(frozen=True)
class Outcome:
    """What became of one check."""

    name: str
    result: str  # passed | failed | not applicable | not run
    line: str = ""  # of a failure: what is wrong, where, what to do; of one that does not apply: why

    @property
    def failed(self) -> bool:
        """Whether the method is wrong."""
        return self.result == "failed"


def check_method(method: Method) -> list[Outcome]:
    """What became of every check; raises UserError where the method is not one, or refuses its settings."""
    if not (isinstance(method, Method) and preflight.hashable(method)):
        raise UserError(
            f"{method!r:.80} is no method: derive its class from pvcbench.policy.Method and write "
            "@dataclass(frozen=True) above it"
        )
    found: list[Outcome] = []
    subject = None
    for check in CHECKS:
        name = name_of(check)
        if any(one.failed for one in found[:DECISIVE]):
            found.append(Outcome(name, "not run", "an earlier check failed"))
            continue
        subject, outcome = outcome_of(name, check, subject or method)
        found.append(outcome)
    return found


def name_of(check: Callable) -> str:
    """What a check is called in the table."""
    return check.__name__.replace("_", " ")


def failures(method: Method) -> list[str]:
    """The lines of all checks that fail; none where the method is right."""
    return [outcome.line for outcome in check_method(method) if outcome.failed]


@torch.inference_mode()
def outcome_of(name: str, check: Callable, subject: Subject | Method) -> tuple[Subject | Method, Outcome]:
    """Runs one check; what a method raises becomes a line as well."""
    try:
        subject = subject if isinstance(subject, Subject) else Subject(subject)
        reason = check(subject)
    except Wrong as error:
        return subject, Outcome(name, "failed", line(error.fault, str(error)))
    except MethodError as error:
        return subject, Outcome(name, "failed", line(error.fault, str(error)))
    except UserError:
        raise
    except Exception as error:
        method = subject.method if isinstance(subject, Subject) else subject
        told = f"{place(method)} made the engine stop with {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return subject, Outcome(name, "failed", line("raises", told))
    return subject, Outcome(name, "passed" if reason is None else "not applicable", reason or "")


def line(fault: str, told: str) -> str:
    """A failure in one line."""
    if "FrozenInstanceError" in told:
        fault = "state"
    advice = f". What to do: {ADVICE[fault]}" if fault in ADVICE else ""
    return f"{TITLES[fault]}: {told}{advice}"


def place(method: Method, *names: str) -> str:
    """A function of the method with file and line: the first of those named that it defines, else its scores."""
    own = [name for name in names if getattr(type(method), name) is not getattr(Method, name)]
    return answers.label(method, own[0] if own else "survivors" if method.prunes else "scores")


# ---------------------------------------------------------------------------------------------- single answers


def every_answer(subject: Subject) -> str | None:
    """Shapes, dtypes, finite numbers, plans and budgets; the same answer twice; nothing shown is changed."""
    if subject.method.reference:
        return "the full cache answers nothing"
    try:
        reached = [on_trial(subject, bench.host(name)) for name in MODELS]
        if not sum(reached):
            where = place(subject.method, "resolve", "plan")
            raise Wrong("reach", f"{where} raised OutOfReach at every budget of {subject.tokens} tokens")
        return None
    except MethodError as error:
        if error.fault == "unsteady":
            require_stateless(subject)
        raise


def on_trial(subject: Subject, engine: Engine, most: int | None = None) -> int:
    """Runs the cells with every answer looked at; how many were reached.

    Under hold where the method can: its prefill and its fork are those of grow.
    """
    ids, done, engine.strict = subject.ids(tokens=subject.tokens + preflight.STEPS), 0, True
    try:
        for cell in subject.cells(engine, subject.policies[-1])[:most]:
            try:
                preflight.run(engine, cell, ids, subject.tokens)
                done += 1
            except OutOfReach:
                continue
            except NotFinite as error:
                raise Wrong("NaN", f"{place(subject.method)} made the model's numbers NaN: {error}") from error
    finally:
        engine.strict = False
    return done


def no_state(subject: Subject) -> str | None:
    """What a method answers on a prompt is the same before and after it has seen another one."""
    if subject.method.reference:
        return "the full cache answers nothing"
    cell, method = subject.cells(bench.host(GROUPED))[0], subject.method
    first = kept(subject, cell, subject.ids())
    kept(subject, cell, subject.ids(1))
    again = kept(subject, cell, subject.ids())
    require_stateless(subject)
    fresh = replace(cell, method=replace(cell.method)) if is_dataclass(method) else cell
    if not same(first, again) or not same(first, kept(subject, fresh, subject.ids())):
        raise Wrong("state", f"{place(method)} keeps other entries of a prompt after it has seen another prompt")
    return None


def require_stateless(subject: Subject) -> None:
    """Raises Wrong where what the method, its classes or their modules hold is not what it was."""
    now = held_by(subject.method)
    changed = [name for name in subject.held | now if subject.held.get(name) != now.get(name)]
    if changed:
        raise Wrong("state", f"{place(subject.method)} changed {', '.join(changed)}")


def kept(subject: Subject, cell: Cell, ids: torch.Tensor, name: str = GROUPED) -> list[torch.Tensor]:
    """The positions that each layer keeps of a prompt."""
    [group] = fork(bench.host(name), ids, [cell], 0, subject.draws)
    return positions(group)


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    """Whether two caches hold the same entries."""
    pairs = zip(one, other, strict=True)
    return all(mine.shape == theirs.shape and bool((mine == theirs).all()) for mine, theirs in pairs)


# ---------------------------------------------------------------------------------------------- exactness


def full_budget(subject: Subject) -> None:
    """Nothing evicted: the tokens and logits of the unmodified model."""
    for name in MODELS:
        engine, ids, tokens = bench.host(name), subject.ids(), subject.tokens
        written = bench.plain(name).generate(ids, max_new_tokens=STEPS, do_sample=False)
        theirs = bench.plain(name)(written).logits[:, tokens:]
        cells = [Cell("1.0", subject.method, None, hold, everything=True) for hold in subject.policies]
        found, _ = engine.greedy(fork(engine, ids, cells, STEPS), feed=None, new_tokens=STEPS, ends=())
        if found != [written[:, tokens:].tolist()] * len(cells):
            raise Wrong("differs", f"{place(subject.method)}: other tokens than the unmodified model's, {name}")
        cells += whole_prompt(subject, engine)
        for cell in cells:
            groups = fork(engine, ids, [cell], STEPS, subject.draws)
            require_whole(subject, groups[0])
            ours = torch.stack(teach(engine, groups, written[:, tokens:], [1] * STEPS).logits, 1)
            require_close(subject, ours, theirs, f"the unmodified model, nothing evicted, {name}")


def whole_prompt(subject: Subject, engine: Engine) -> list[Cell]:
    """The cell whose budget is the whole prompt, so that the method's own code keeps all of it, if it can."""
    if not subject.free or False not in subject.policies:
        return []
    try:
        return [preflight.settled(subject.method, subject.tokens, engine.shape(subject.tokens), False)]
    except OutOfReach:
        return []


def require_whole(subject: Subject, group: Group) -> None:
    """Raises Wrong where something of the prompt is gone."""
    entries = [group.measure(0, sample).entries for sample in range(subject.batch)]
    fewest = min(layers[layer] for layers in entries for layer in group.prefill.shape.evicted)
    if fewest < subject.tokens:
        where = place(subject.method, "plan")
        raise Wrong("budget", f"{where} keeps {fewest:.1f} of {subject.tokens} entries at a budget of all of them")


def any_budget(subject: Subject) -> str | None:
    """The logits of dense attention under the mask of what was kept, at every budget."""
    if subject.method.reference:
        return "the full cache evicts nothing"
    fed, cache = subject.ids(1, STEPS), subject.method.positions == "cache"
    for name in MODELS:
        engine = bench.host(name, exact_angles=cache)
        both, dense = torch.cat((subject.ids(), fed), 1), bench.dense(name, cache)
        for cell, groups in decoding(subject, engine, None if name == GROUPED else FEW):
            trace = teach(engine, groups, fed, [1] * STEPS)
            masks = dense_masks(trace.kept[0], groups[0].prefill, both.shape[1])
            expected = dense(both, masks, ranks=ranks_of(masks, both.shape[1]) if cache else None)[:, subject.tokens :]
            what = f"dense attention to what it kept, budget {cell.budget}, {policy(cell)}, {name}"
            require_close(subject, torch.stack(trace.logits, 1), expected, what)
    return None


def decoding(
    subject: Subject, engine: Engine, most: int | None = None, policies: Sequence[bool] | None = None
) -> Iterator[tuple[Cell, list[Group]]]:
    """Every cell, or so many for each decode policy, with its cache; those that cannot be planned are left out."""
    prefills: dict[tuple, Prefill] = {}
    for hold in subject.policies if policies is None else policies:
        for cell in subject.cells(engine, hold)[:most]:
            watching, key = [] if cell.everything or cell.pruner else [cell.method], (cell.method, cell.everything)
            if key not in prefills:
                prefills[key] = engine.prefill(subject.ids(), watching, cell.pruner, subject.draws)
            try:
                groups = engine.fork(prefills[key], [cell], STEPS)
            except OutOfReach:
                continue
            yield cell, groups


def policy(cell: Cell) -> str:
    """The decode policy of a cell, as a setting."""
    return "decode=hold" if cell.hold else "decode=grow"


def require_close(subject: Subject, ours: torch.Tensor, theirs: torch.Tensor, what: str) -> None:
    """Raises Wrong where logits differ."""
    worst = (ours - theirs).abs().max().item()
    if not worst <= CLOSE * (1 + theirs.abs().max().item()):
        raise Wrong("differs", f"{place(subject.method)}: logits differ by {worst:.1e} from {what}")


def realised_size(subject: Subject) -> str | None:
    """Entries per KV head, mean over evicted layers, are those asked for, to 1% of the prompt or one entry."""
    if subject.method.reference or not subject.free:
        return "its size is its own"
    slack = max(1.0, answers.SLACK * subject.tokens)
    for name in MODELS:
        engine = bench.host(name)
        evicted = engine.shape(subject.tokens).evicted
        for cell, groups in decoding(subject, engine, policies=subject.policies[:1]):
            for sample in range(subject.batch):
                sizes = groups[0].measure(0, sample).entries
                mean = sum(sizes[layer] for layer in evicted) / len(evicted)
                if abs(mean - cell.budget) > slack:
                    where, told = place(subject.method, "plan", "survivors"), f"{mean:.1f} entries (mean)"
                    raise Wrong("budget", f"{where} keeps {told} where {cell.budget} were asked for, {name}")
    return None


def protected_entries(subject: Subject) -> str | None:
    """What protects() names stays whatever it scores, in every step of decoding."""
    engine, method = bench.host(GROUPED), subject.method
    shape, fed = engine.shape(subject.tokens), subject.ids(1, STEPS)
    if not any(sum(answers.protected(cell.method, cell.budget, shape)) for cell in subject.cells(engine)):
        return "protects() names nothing"
    for cell, groups in decoding(subject, engine, FEW):
        first, last = answers.protected(cell.method, cell.budget, shape)
        scored = not cell.everything and cell.pruner is None
        worst = lowered(engine, groups[0], cell, first, last) if scored else groups
        for seen, _, step in teach(engine, worst, fed, [1] * STEPS).kept[0]:
            since = subject.tokens if not cell.holds else seen  # what is generated stays under grow
            wanted = {*range(first), *range(since - min(last, since), since)}
            for layer in shape.evicted:
                missing = [wanted - set(head) for rows in step[layer].tolist() for head in rows]
                if any(missing):
                    where = place(method, "drop", "survivors", "plan")
                    named = sorted(set().union(*missing))
                    raise Wrong("protected", f"{where} lost tokens {named[:4]} of the {first} first and {last} last")
    return None


def lowered(engine: Engine, group: Group, cell: Cell, first: int, last: int) -> list[Group]:
    """The cell once more, where what is protected has scored lowest of all."""
    known = group.prefill.observer.scores
    true = known[cell.method]
    try:
        known[cell.method] = [worth.clone() for worth in true]
        for worth in known[cell.method]:
            lowest = worth.amin() - 1
            worth[..., :first] = lowest
            worth[..., worth.shape[-1] - min(last, worth.shape[-1]) :] = lowest
        return engine.fork(group.prefill, [cell], STEPS)
    finally:
        known[cell.method] = true


# ---------------------------------------------------------------------------------------------- batches, chunks


def batch_as_single(subject: Subject) -> str | None:
    """Two samples together keep what each of them keeps alone."""
    if subject.method.ragged_batch:
        return "ragged_batch: samples run one by one"
    if subject.method.reference:
        return "the full cache evicts nothing"
    fed = subject.ids(1, STEPS)
    for name in (GROUPED, MULTI):
        engine = bench.host(name)
        for cell, groups in decoding(subject, engine, FEW):
            together = teach(engine, groups, fed, [1] * STEPS).kept[0]
            for row in range(subject.batch):
                part = slice(row, row + 1)
                alone = fork(engine, subject.ids()[part], [cell], STEPS, subject.draws[part])
                for mine, one in zip(together, teach(engine, alone, fed[part], [1] * STEPS).kept[0], strict=True):
                    if sets([layer[part] for layer in mine[2]]) != sets(one[2]):
                        where, told = place(subject.method, "plan"), "keeps other entries of a sample"
                        advice = "no number may be taken over dimension 0, the batch; or declare ragged_batch = True"
                        raise Wrong("differs", f"{where} {told} when another runs beside it, {name}: {advice}")
    return None


def sets(layers: list[torch.Tensor]) -> list:
    """The positions of every layer, sample and head as sets, without empty slots."""
    return [[[set(head) - {-1} for head in rows] for rows in layer.tolist()] for layer in layers]


def chunks_as_whole(subject: Subject) -> str | None:
    """A prompt that is read in chunks is scored as one that is read at once."""
    if subject.method.prunes:
        return "it prunes between layers, which reads the prompt at once"
    if subject.method.reference:
        return "the full cache scores nothing"
    for name in MODELS:
        whole = bench.host(name)
        method = next((cell.method for cell in subject.cells(whole)), subject.method)  # settled, where it can be
        scored = []
        for chunk in (None, CHUNK):
            whole.chunk = chunk
            try:
                prefill = whole.prefill(subject.ids(), [method], draws=subject.draws)
            finally:
                whole.chunk = None
            scored.append(prefill.observer.scores[method])
        for one, other in zip(*scored, strict=True):
            far, most = (one - other).abs().max().item(), one.abs().max().item()
            if far > (1e-7 if one.dtype == torch.float64 else 1e-4) * max(most, 1e-30):
                told = f"gives scores up to {far:.1e} apart for a prompt read in chunks of {CHUNK} and at once, {name}"
                raise Wrong("differs", f"{place(subject.method)} {told}")
    return None


# ---------------------------------------------------------------------------------------------- the future


def nothing_of_the_future(subject: Subject) -> str | None:
    """What is kept of a prompt, and while a document is read, depends on no token that comes later."""
    method = subject.method
    if method.reads is not None:
        return f"it declares reads={method.reads}: a leaking reference, which is ranked nowhere"
    if method.reference:
        return "the full cache chooses nothing"
    engine, half = bench.host(GROUPED), STEPS // 2
    one, other = subject.ids(1, STEPS), subject.ids(2, STEPS)
    other[:, :half] = one[:, :half]
    for hold in subject.policies:
        for cell in subject.cells(engine, hold)[:FEW]:
            try:
                found = [known_of(subject, engine, cell, fed) for fed in (one, other)]
            except OutOfReach:
                continue
            if any(sets(mine) != sets(theirs) for mine, theirs in zip(*found, strict=True)):
                told = f"keeps other entries when other tokens follow, {policy(cell)}"
                raise Wrong("future", f"{place(method, 'drop')} {told}")
    return require_streaming(subject, engine)


def known_of(subject: Subject, engine: Engine, cell: Cell, fed: torch.Tensor) -> list[list[torch.Tensor]]:
    """What is kept before each step whose earlier tokens are the same, and what follows is fed afterwards."""
    kept = teach(engine, fork(engine, subject.ids(), [cell], STEPS, subject.draws), fed, [1] * STEPS).kept[0]
    return [step for _, _, step in kept[: STEPS // 2 + 1]]


def require_streaming(subject: Subject, engine: Engine) -> None:
    """Raises Wrong where the first tokens of a document are read otherwise when its last ones are others.

    All that are read under eviction lie in one block of the scan, in which later tokens are in memory already.
    """
    method = subject.method
    reads = "streaming" in method.protocols and not method.needs_rows
    if not reads or "hold" not in method.decodes or not subject.free or method.prunes:
        return
    for cell in subject.cells(engine, True)[:1]:
        shared = cell.budget + 2 * BLOCK // 3
        one, other = (subject.ids(seed, cell.budget + BLOCK)[:1] for seed in (0, 3))
        other[:, :shared] = one[:, :shared]
        try:
            read = [engine.stream(ids, cell, 1, subject.draws[:1])[0].logprobs[:, : shared - 1] for ids in (one, other)]
            slow = engine.stream(one, cell, 1, subject.draws[:1], scan=False)[0].logprobs[:, : shared - 1]
        except OutOfReach:
            continue
        exact = CLOSE if method.positions == "original" else 1e-4  # float32 cos and sin turn keys again
        for fault, theirs, how in (
            ("future", read[1], "when others follow"),
            ("differs", slow, "layer by layer than token by token"),
        ):
            worst = (read[0] - theirs).abs().max().item()
            if not worst <= exact * (1 + theirs.abs().max().item()):
                told = f"reads the first {shared} tokens of a document otherwise {how}, by {worst:.1e} nats"
                raise Wrong(fault, f"{place(method)} {told} (streaming, budget {cell.budget})")


# ---------------------------------------------------------------------------------------------- sixteen bits


def bfloat16(subject: Subject) -> str | None:
    """Every answer once more on models in bfloat16."""
    if subject.method.reference:
        return "the full cache answers nothing"
    for name in (GROUPED, MIXED):
        on_trial(subject, bench.host(name, torch.bfloat16), FEW)
    return None


CHECKS = (
    every_answer,
    no_state,
    full_budget,
    any_budget,
    realised_size,
    protected_entries,
    batch_as_single,
    chunks_as_whole,
    nothing_of_the_future,
    bfloat16,
)
DECISIVE = 2  # where one of the first checks fails, the others are not run
