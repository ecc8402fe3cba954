"""Every press of a kvpress under `method=kvpress` beside kvpress' own run: who can be compared, and the kept sets."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from methods.kvpress import KVPress, installed
from peers.client import Peer, PeerFailed
from pvcbench.engine.engine import Engine
from pvcbench.engine.evict import Cell
from pvcbench.engine.prefill import Prefill
from pvcbench.errors import UserError
from pvcbench.policy import Method, OutOfReach

BASE = {"press": "SnapKVPress"}
TWO = [{"press": "KnormPress", "options": {"compression_ratio": 0.3}}]
TWO += [{"press": "KeyDiffPress", "options": {"compression_ratio": 0.4}}]
OPTIONS = {  # of presses whose defaults keep everything, or that need more than a press inside them
    "ComposedPress": {"presses": TWO},
    "PerLayerCompressionPress": {"press": "KnormPress", "compression_ratios": [0.5, 0.25] * 15},
    "DMSPress": {"press": "KnormPress", "threshold": -12.0},
    "SimLayerKVPress": {"lazy_threshold": 0.5, "n_recent": 128},
    "ThinKPress": {"key_channel_compression_ratio": 0.5},
    "RandomPress": {"seed": 0},
}
ABSTRACT = ("BasePress", "ScorerPress")
FILES = "reads files that kvpress loads from a hub when it meets a model"
WHY = {
    "LagKVPress": "ties: of equal scores the earlier stays here, any there; below the size that it always keeps, "
    "all of that ties"
}


@dataclass(frozen=True)
class Named:
    """A press with its options, as a method or with the reason why there is none."""

    name: str
    options: dict
    method: Method | None = None
    reason: str = ""

    @property
    def request(self) -> dict:
        """The press as the worker takes it."""
        return {"press": self.name, "options": self.options}


def named(folder: str) -> list[Named]:
    """Every press of the kvpress in a folder."""
    installed.package(folder)
    return [found(name) for name in installed.presses() if name not in ABSTRACT]


def found(name: str) -> Named:
    """A press with the first options that it takes."""
    reasons = []
    for options in [OPTIONS[name]] if name in OPTIONS else [{}, BASE, {"base_press": "SnapKVPress"}]:
        try:
            method = KVPress(name, options)
        except UserError as error:
            reasons.append(str(error))
            continue
        if method.facts.prepares:
            return Named(name, options, None, f"{name} {FILES}")
        return Named(name, options, method)
    return Named(name, {}, None, sensible(reasons))


def sensible(reasons: list[str]) -> str:
    """Of the reasons against a press with and without one inside it that which is not about the options."""
    return next((one for one in reasons if "cannot be made of options" not in one), reasons[0])


def asked(method: Method, budget: int) -> int | None:
    """The budget of a cell: none where the options of a press fix its size."""
    return None if method.own_budget is not None else budget


@dataclass(frozen=True)
class Kept:
    """What a method of ours keeps, as [layer][head], and by which scores, where it ranks by some."""

    entries: list[list[set[int]]]
    scores: Sequence[torch.Tensor] = ()  # of each layer, [1, kv_heads, tokens]

    def overlaps(self, theirs: Sequence[Sequence[Sequence[int]]], ties: bool = False) -> list[float]:
        """Per layer the share of their kept entries that ours keeps, mean over heads.

        With `ties` an entry counts as kept that scores as much as the worst that is: which of them stay, no score says.
        """
        layers = []
        for layer, (own, other) in enumerate(zip(self.entries, theirs, strict=True)):
            shares = []
            for head, (mine, kept) in enumerate(zip(own, map(set, other), strict=True)):
                if kept:
                    alike = mine | (self.tied(layer, head, mine) if ties else set())
                    shares.append(len(alike & kept) / len(kept))
            layers.append(sum(shares) / len(shares))
        return layers

    def tied(self, layer: int, head: int, mine: set[int]) -> set[int]:
        """Entries of a head that score as much as the worst one kept."""
        worth = self.scores[layer][0, head]
        return set((worth == worth[sorted(mine)].min()).nonzero().flatten().tolist())


def kept_by_us(engine: Engine, ids: torch.Tensor, presses: Sequence[Named], budget: int) -> dict[str, Kept | str]:
    """What our run of each press keeps, out of one prefill; or in its place why there is none."""
    shape, methods, found = engine.shape(ids.shape[1]), {}, {}
    for one in presses:
        try:
            methods[one.name] = one.method.resolve(asked(one.method, budget), shape)
        except OutOfReach as error:
            found[one.name] = str(error)
    prefill = engine.prefill(ids, list(methods.values()))
    for name, method in methods.items():
        try:
            found[name] = kept_of(engine, prefill, Cell(name, method, asked(method, budget)))
        except OutOfReach as error:
            found[name] = str(error)
    return found


def kept_of(engine: Engine, prefill: Prefill, cell: Cell) -> Kept:
    """What a cell keeps of a prefill."""
    [group] = engine.fork(prefill, [cell], 0)
    entries = [[set(head) - {-1} for head in layer.positions[0].tolist()] for layer in group.layers]
    return Kept(entries, prefill.observer.scores[cell.method])


def compared(engine: Engine, peer: Peer, ids: torch.Tensor, ratio: float, presses: Sequence[Named]) -> list[dict]:
    """One line for every press that runs on both sides, and one with the reason for every other."""
    lines = []
    ours = kept_by_us(engine, ids, [one for one in presses if one.method], int(ids.shape[1] * (1 - ratio)))
    for one in presses:
        line, own = {"press": one.name, "options": one.options, "reason": one.reason}, ours.get(one.name)
        if isinstance(own, str):
            line["reason"] = own
        elif own is not None:
            try:
                wanted = {"ids": ids[0].tolist(), "ratio": ratio, "seed": 0}
                line |= beside(one, own, peer.ask("keep", press=one.request, **wanted)["kept"])
            except PeerFailed as error:
                line["reason"] = str(error)
        lines.append(line)
        print(f"{one.name}: {line.get('mean', line['reason'])}", file=sys.stderr)
    return lines


def beside(one: Named, ours: Kept, theirs: list) -> dict:
    """The kept sets of both sides: sizes, and the overlap by layer."""
    facts = one.method.facts
    chosen = "its hook, its own size" if facts.own_size else "its scores" if facts.by_scores else "its hook"
    sizes = {"kept": mean_size(ours.entries), "kept_there": mean_size(theirs)}
    return {"by": chosen, **sizes, **measures(ours, theirs, facts.by_scores), "why": WHY.get(one.name, "")}


def measures(ours: Kept, theirs: list, by_scores: bool) -> dict:
    """The overlap, mean and least of the layers, and what it is where ties count as alike."""
    shares = ours.overlaps(theirs)
    numbers = {"mean": round(sum(shares) / len(shares), 4), "least": round(min(shares), 4)}
    if by_scores:
        shares = ours.overlaps(theirs, ties=True)
        numbers["mean_but_for_ties"] = round(sum(shares) / len(shares), 4)
    return numbers


def mean_size(kept) -> float:
    """Entries per KV head, mean over layers."""
    heads = [len(head) for layer in kept for head in layer]
    return round(sum(heads) / len(heads), 2)
