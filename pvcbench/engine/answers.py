"""Checks everything that a method returns to the engine (scores, plans, row weights) against its contract.

Shapes, kinds of numbers and sums are looked at in every run. In a trial (`Engine.strict`, see
`evaluation/preflight.py`) methods are also asked twice, and what they drop is looked at slot by slot, which would make
a GPU wait.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pvcbench.errors import NOT_FINITE, MethodError, NotFinite, OutOfReach, UserError
from pvcbench.policy import Method, Observation, Pass, Shape, StoredPrompt, by_layer

SLACK = 0.01  # of the prompt: by how much a plan may exceed its budget, since some sizes come in steps
THEIRS = (UserError, OutOfReach, MethodError, NotFinite, MemoryError, torch.OutOfMemoryError)  # no fault of a method's


def ask(method: Method, name: str, *arguments, strict: bool = False):
    """What a method answers; an exception of its code becomes a MethodError that names file and line."""
    before = held(arguments) if strict else ()
    try:
        found = getattr(method, name)(*arguments)
        again = getattr(method, name)(*arguments) if strict else None
    except THEIRS:
        raise
    except Exception as error:
        if "can't allocate memory" in str(error):
            raise
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise MethodError(f"{label(method, name, error)} stopped with {text}", "raises") from error
    if not all(same(one, other) for one, other in zip(before, held(arguments) if strict else (), strict=True)):
        wanted = "answers alone: change a clone(), not in place"
        raise wrong(method, name, "other values to what it was shown", wanted, "writes")
    if strict and not same(found, again):
        told_again, wanted = "another answer when asked again with the same input", "the same answer every time"
        raise wrong(method, name, told_again, wanted, "unsteady")
    return found


def held(arguments: tuple) -> tuple[Tensor, ...]:
    """Copies of all tensors that a method is shown: they are the cache's own, which other cells read too."""
    shown = [part for one in arguments if isinstance(one, Observation) for part in vars(one).values()]
    shown += [part for one in arguments if isinstance(one, list | tuple) for part in one]
    return tuple(part.clone() for part in shown if isinstance(part, Tensor))


def same(one, other) -> bool:
    """Whether two answers are equal, NaN to NaN; numbers and texts are compared as written."""
    if isinstance(one, list | tuple) and type(one) is type(other):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        alike = one.shape == other.shape and one.dtype == other.dtype
        return alike and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
    return type(one) is type(other) and repr(one) == repr(other)


def label(method: Method, name: str, error: Exception | None = None) -> str:
    """A method's function with its file and line: where it is defined or, of an error, where in its file that arose."""
    owner = next(kind for kind in type(method).__mro__ if name in vars(kind))
    function = vars(owner)[name]
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    code = getattr(function, "__code__", None)
    place, line = (type(method).__module__, None) if code is None else (code.co_filename, code.co_firstlineno)
    trace = None if error is None else error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == place:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"{type(method).__name__}.{name} ({place}{'' if line is None else f':{line}'})"


def wrong(method: Method, name: str, got: str, wanted: str, fault: str = "answer") -> MethodError:
    return MethodError(f"{label(method, name)} gave {got}; wanted: {wanted}", fault)


def missing(numbers: Tensor) -> str:
    """The fault of numbers that are not all finite."""
    return "NaN" if bool(torch.isnan(numbers).any()) else "infinite"


def told(value) -> str:
    """A value in a message: of a tensor its kind and shape, of several their number too."""
    if isinstance(value, list | tuple) and value and all(isinstance(part, Tensor) for part in value):
        return f"{len(value)} of {' and '.join(dict.fromkeys(map(told, value)))}"
    if not isinstance(value, Tensor):
        return repr(value)[:80]
    return f"{value.dtype} {list(value.shape)}".removeprefix("torch.")


def whole(value) -> bool:
    """Whether a value is a tensor of whole numbers."""
    if not isinstance(value, Tensor) or value.dtype == torch.bool:
        return False
    return not (value.is_floating_point() or value.is_complex())


def row_weights(method: Method, shape: Shape, layer: int, strict: bool = False) -> Tensor | None:
    """The weights of the last query rows: one number each, of no more rows than there are."""
    found = ask(method, "row_weights", shape, layer, strict=strict)
    if found is None:
        return None
    numbers = isinstance(found, Tensor) and not (found.is_complex() or found.dtype == torch.bool)
    if not numbers or found.dim() != 1 or len(found) > shape.tokens:
        raise wrong(
            method, "row_weights", told(found), f"None or one number for each of at most {shape.tokens} rows", "shape"
        )
    if not bool(torch.isfinite(found).all()):
        raise wrong(method, "row_weights", "NaN or infinite weights", "finite ones", missing(found))
    return found


def scores(method: Method, seen: Observation, strict: bool = False) -> Tensor:
    """A number for each entry, in float32 or float64 (or the keys' own kind), finite where the model is."""
    found = ask(method, "scores", seen, strict=strict)
    shape, kinds = seen.positions.shape, {torch.float32, torch.float64, seen.keys.dtype}
    if not isinstance(found, Tensor) or found.shape != shape or found.dtype not in kinds:
        wanted = " or ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        fault = "dtype" if isinstance(found, Tensor) and found.shape == shape else "shape"
        raise wrong(method, "scores", told(found), f"{wanted} {list(shape)}, one number for each entry", fault)
    if not bool(torch.isfinite(found).all()):
        seen_parts = (seen.keys, seen.values, seen.mass, seen.totals, seen.queries, seen.hidden)
        if not all(bool(torch.isfinite(part).all()) for part in seen_parts if part is not None):
            raise NotFinite(NOT_FINITE)
        wanted = "finite ones (protects() keeps entries)"
        raise wrong(method, "scores", "NaN or infinite scores of finite keys", wanted, missing(found))
    return found


def passes(method: Method, prompt: StoredPrompt, strict: bool = False) -> list[Pass]:
    """Tokens to read on top of a prompt: whole numbers for each sample, about entries that the prompt has."""
    found, (samples, tokens) = ask(method, "passes", prompt, strict=strict), prompt.ids.shape
    if not isinstance(found, list | tuple) or not all(isinstance(one, Pass) for one in found):
        raise wrong(method, "passes", told(found), "a list of pvcbench.policy.Pass")
    for one in found:
        if not whole(one.ids) or one.ids.dim() != 2 or len(one.ids) != samples or not one.ids.shape[1]:
            raise wrong(method, "passes", told(one.ids), f"token ids [{samples}, tokens], one or more", "shape")
        if not 0 <= one.sinks <= one.first < one.last <= tokens:
            told_places = f"first {one.first}, last {one.last}, sinks {one.sinks}"
            raise wrong(method, "passes", told_places, f"0 <= sinks <= first < last <= {tokens}", "shape")
    beside = method.needs_rows or method.needs_queries or method.needs_plain_keys or method.channels
    if found and (beside or row_weights(method, prompt.shape, prompt.shape.evicted[0]) is not None):
        wanted = "passes or rows, queries, plain keys and totals of the prompt, not both"
        raise wrong(method, "passes", f"{len(found)} passes beside what it asks of the prompt's own rows", wanted)
    return list(found)


def notes(method: Method, seen: Observation, strict: bool = False) -> Tensor | None:
    """A number of each sample about a layer, of methods that define `notes`; None of the others."""
    if type(method).notes is Method.notes:
        return None
    found, samples = ask(method, "notes", seen, strict=strict), len(seen.positions)
    if found is None:
        return None
    if not isinstance(found, Tensor) or tuple(found.shape) != (samples,) or not found.is_floating_point():
        raise wrong(method, "notes", told(found), f"floating numbers {[samples]}, one for each sample")
    if not bool(torch.isfinite(found).all()):
        raise wrong(method, "notes", "NaN or infinite numbers", "finite ones")
    return found


def totals(method: Method, seen: Observation, strict: bool = False) -> Tensor | None:
    """Running totals: None, or as many channels for each entry as the method declares."""
    found = ask(method, "accumulate", seen, strict=strict)
    if found is None:
        return None
    wanted = (*seen.positions.shape, method.channels)
    if not isinstance(found, Tensor) or not found.is_floating_point() or tuple(found.shape) != wanted or not wanted[-1]:
        what = f"None or floating numbers {list(wanted)}, the last being its `channels`" if wanted[-1] else "None"
        hint = "" if wanted[-1] else ", unless `channels` says how many totals an entry has"
        raise wrong(method, "accumulate", told(found), what + hint, "shape")
    return found


def protected(method: Method, budget: int | None, shape: Shape) -> tuple[int, int]:
    """How many first and last tokens stay: two whole numbers, none negative."""
    found = ask(method, "protects", budget, shape)
    pair = isinstance(found, tuple | list) and len(found) == 2
    if not pair or not all(isinstance(part, int) and part >= 0 for part in found):
        raise wrong(method, "protects", told(found), "two whole numbers, 0 or more: first and last tokens")
    return tuple(found)


def plan(
    method: Method,
    known: list[Tensor],
    budget: int | None,
    shape: Shape,
    strict: bool = False,
    noted: Sequence[Tensor] = (),
) -> list[Tensor]:
    """Entries to keep per evicted layer, sample and KV head: together no more than the budget, none of them protected
    in vain. `noted` is what a method's `notes` said, layer by layer."""
    arguments = (known, budget, shape, list(noted)) if noted else (known, budget, shape)
    found, wanted = ask(method, "plan", *arguments, strict=strict), [layer.shape[:2] for layer in known]
    listed = isinstance(found, list | tuple) or (isinstance(found, Tensor) and found.dim() == 3)
    counts = by_layer(found, known) if listed else []
    sound = all(whole(own) and bool((own >= 0).all()) for own in counts)
    if not sound or [own.shape for own in counts] != wanted:
        sizes = " or ".join(dict.fromkeys(str(list(size)) for size in wanted))
        rule = f"for each of {len(known)} layers whole numbers, 0 or more, {sizes}: samples, KV heads"
        raise wrong(method, "plan", told(found), rule, "plan")
    entries = known[0].shape[-1]
    kept = [own.clamp(max=entries) for own in counts]
    if budget is not None:
        most = torch.stack([own.double().mean(1).to(kept[0].device) for own in kept]).mean(0).max().item()
        require_within(method, "plan", most, budget, shape)
    stay, fewest = min(sum(protected(method, budget, shape)), entries), min(int(own.min()) for own in kept)
    if fewest < stay:
        raise OutOfReach(f"{fewest} entries are fewer than the {stay} first and last tokens the method keeps")
    return counts


def require_within(method: Method, name: str, kept: float, budget: int, shape: Shape) -> None:
    """Raises MethodError where a method keeps more entries, per KV head and evicted layer, than it was granted."""
    granted = min(budget, shape.tokens)
    if kept > granted + SLACK * shape.tokens:
        wanted = f"at most the budget's {granted} (mean)"
        raise wrong(method, name, f"{kept:.1f} entries per KV head and layer", wanted, "budget")


def survivors(method: Method, seen: Observation, strict: bool = False) -> Tensor | None:
    """Entries that go on to the next layer: indices in order, none twice, what is protected among them."""
    found, entries = ask(method, "survivors", seen, strict=strict), seen.positions.shape[-1]
    if found is None:
        return None
    shaped = whole(found) and found.dim() == 2 and found.shape[0] == len(seen.positions) and found.shape[1] > 0
    if not shaped or not bool((found.diff(dim=-1) > 0).all() and (found >= 0).all() and (found < entries).all()):
        rule = f"None or rising indices below {entries}, [{len(seen.positions)}, kept]"
        raise wrong(method, "survivors", told(found), rule, "plan")
    if strict:
        require_survivors(method, seen, found)
    return found


def require_survivors(method: Method, seen: Observation, chosen: Tensor) -> None:
    """Raises MethodError where an entry that is protected at this budget does not go on."""
    first, last = protected(method, None, seen.shape)
    positions = seen.positions[:, 0]
    stay = (positions < first) | (positions >= seen.seen - last)
    if int(stay.sum()) != int(stay.gather(1, chosen).sum()):
        told_short = "indices without some that protects() names"
        raise wrong(method, "survivors", told_short, f"the {first} first, {last} last", "protected")


def dropped(method: Method, seen: Observation, budget: int | None, strict: bool = False) -> Tensor | None:
    """Slots to free after a decoding step, of each head equally many, none twice and none that is protected."""
    if strict and method.by_scores:
        scores(method, seen, strict=True)
    found = ask(method, "drop", seen, budget, strict=strict)
    if found is None:
        return None
    shape = tuple(seen.positions.shape)
    if not whole(found) or tuple(found.shape[:-1]) != shape[:2] or found.shape[-1] > shape[2]:
        raise wrong(method, "drop", told(found), f"None or slots {[*shape[:2], 'dropped']}, at most {shape[2]}", "plan")
    if strict:
        require_free(method, seen, found, budget)
    return found


def require_free(method: Method, seen: Observation, slots: Tensor, budget: int | None) -> None:
    """Raises MethodError where slots to free are not there, named twice, empty or protected."""
    there = bool((slots >= 0).all()) and bool((slots < seen.positions.shape[-1]).all())
    if not there or bool((slots.sort(-1).values.diff(dim=-1) == 0).any()):
        raise wrong(method, "drop", "slots that do not exist, or one twice", "slots of entries, each once", "plan")
    freed = seen.positions.gather(-1, slots)
    first, last = protected(method, budget, seen.shape)
    first = max(first, seen.stays)
    kept = (freed < first) | (freed >= seen.seen - last)
    if seen.window is not None:  # what no later token sees goes first, protected or not
        kept &= (freed > seen.seen - seen.window) | (freed < 0)
    there = int(((seen.positions >= 0) & (seen.positions < first)).sum(-1).max())
    if bool(kept.any()) and seen.positions.shape[-1] - slots.shape[-1] >= there + last:
        raise wrong(method, "drop", "slots of protected or empty entries", "others first", "protected")
