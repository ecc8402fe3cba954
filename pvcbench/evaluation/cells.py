"""The cells of a run: which methods at which budgets, and what each becomes for a prompt of a given length."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from pvcbench.config.budgets import parse_budgets  # noqa: F401  (known here by its former place)
from pvcbench.engine.evict import Cell
from pvcbench.errors import UserError
from pvcbench.policy import Method, OutOfReach, Shape


@dataclass(frozen=True)
class Point:
    """A method at a budget as asked; `budget` is None where the method's configuration fixes the size.

    A share is rounded down to whole entries: never more is kept than was asked for. The row's `budget_entries` says it.
    """

    name: str | None
    method: Method | None
    label: str | None
    budget: int | float | None

    def cell(self, shape: Shape, hold: bool, interval: int = 1, stays: bool = False, of: int | None = None) -> Cell:
        """This point for one shape of prompt; shares are those of its tokens, or `of` so many; raises OutOfReach."""
        of = shape.tokens if of is None else of
        if self.method.reference or (isinstance(self.budget, float) and self.budget == 1.0):
            return Cell(f"{self.name}@{self.label}", self.method, None, hold, everything=True)
        entries = self.budget
        if isinstance(entries, float):
            entries = int(Fraction(str(entries)) * of)  # 0.7 of 90 is 63, in floating point 62.999...
            if entries == 0:
                raise OutOfReach(
                    f"{self.label} of {of} tokens is less than one entry: shares are rounded down to entries"
                )
        if entries is not None:
            first, last = self.method.protects(entries, shape)
            if entries < first + min(last, 1):
                least = first + min(last, 1)
                raise OutOfReach(
                    f"{entries} entries are too few: the method keeps {first} sinks and needs {least} entries or more"
                )
        method = self.method.resolve(None if entries is None else min(entries, shape.tokens), shape)
        share = self.budget if isinstance(self.budget, float) else None
        share = share if share is None or of == shape.tokens else entries / shape.tokens
        return Cell(f"{self.name}@{self.label}", method, entries, hold, share=share, interval=interval, stays=stays)


def answer_room(cell: Cell, prompt: int) -> int | None:
    """The longest answer to a prompt of so many tokens where its method ends it at the budget; None: no such end."""
    return cell.budget - prompt if cell.method.ends_at_budget else None


OBSERVATION = Point(None, None, None, None)  # no cell: what a sample shows by itself, in tasks that observe


def evicts_while_reading(protocols: Sequence[str]) -> bool:
    """Whether a budget holds while a document is read, after every token or every few."""
    return bool({"streaming", "blockwise"} & set(protocols))


def require_supported(
    name: str, method: Method, decode: str, protocols: Sequence[str], interval: int, stays: bool
) -> None:
    """Raises UserError where a method does not support a task's protocols, or how entries go while decoding."""
    streams, usual = evicts_while_reading(protocols), "leave interval=1 and prompt=counted"
    policy = "hold" if streams else decode  # a budget that holds while reading evicts as it does in decoding
    if policy not in method.decodes:
        raise UserError(f"{name} supports decode={' or '.join(method.decodes)}, not the {policy} asked for")
    if method.reference:
        return
    if streams and (interval > 1 or stays):
        raise UserError(f"a task that reads documents says itself after how many tokens entries go: {usual}")
    if streams and method.own_budget is not None:
        raise UserError(f"{name} sets its own size and has no budget to hold: choose others by method=[...]")
    lacking = [protocol for protocol in protocols if protocol not in method.protocols]
    if lacking:
        known = ", ".join(method.protocols)
        raise UserError(
            f"{name} does not support this task's {lacking[0]} protocol, only {known}: "
            "choose other methods by method=[...]"
        )
    if streams and method.needs_rows:
        raise UserError(
            f"{name} needs query rows, which reading a document does not give: choose others by method=[...]"
        )
    if interval > 1 or stays:
        require_interval(name, method, stays, usual)


def require_interval(name: str, method: Method, stays: bool, usual: str) -> None:
    """Raises UserError where a method cannot evict at intervals, or cannot keep the prompt out of its budget."""
    if not method.by_scores or method.own_budget is not None:
        raise UserError(
            f"{name} decides by itself what goes while decoding, and when: {usual}, or choose others by method=[...]"
        )
    if stays and method.positions == "cache":
        raise UserError(
            f"{name} at positions=cache keeps first tokens and one window, which prompt=protected breaks up: leave "
            f"prompt=counted, or set methods.{name}.positions=original"
        )
    if stays and method.ends_at_budget:
        raise UserError(f"{name} counts the prompt in its budget, and keeps all of it: leave prompt=counted")
    if stays and method.prunes:
        raise UserError(f"{name} drops tokens of the prompt between layers: leave prompt=counted")


def points(
    methods: Mapping[str, Method],
    budgets: Sequence[int | float],
    decode: str,
    protocols: Sequence[str] = ("generate",),
    interval: int = 1,
    stays: bool = False,
) -> list[Point]:
    """All cells of a run, the reference first; refuses what a method does not support."""
    found = []
    for name, method in sorted(methods.items(), key=lambda item: not item[1].reference):
        require_supported(name, method, decode, protocols, interval, stays)
        if method.own_budget is not None:
            found.append(Point(name, method, method.own_budget, None))
            continue
        for budget in dict.fromkeys(budgets):
            if method.ends_at_budget and isinstance(budget, float):
                raise UserError(
                    f"budgets: {name} needs sizes in entries, which a prompt and its answer fill together, and not the "
                    f"share {budget!r}: for example budgets=[1024]"
                )
            first = method.protects(2**31, Shape(2**31, 1, (0,)))[0]
            if isinstance(budget, int) and budget < first + 4:
                hint = " Did you mean 1.0?" if budget == 1 else ""
                raise UserError(
                    f"budgets: {budget} entries are too few for {name}: it needs {first + 4} or more.{hint}"
                )
            found.append(Point(name, method, repr(budget), budget))
    if not any(point.method.reference for point in found):
        raise UserError("no method is the reference: add conf/method/full to the methods")
    return found
