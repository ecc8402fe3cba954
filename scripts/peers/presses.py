"""Every press of a kvpress under `method=kvpress` beside kvpress' own run: who can be compared, and the kept sets."""

import sys
from dataclasses import dataclass

import torch

from methods.kvpress import KVPress, installed
from peers.client import Peer, PeerFailed
from pvcbench.engine.engine import Engine
from pvcbench.engine.evict import Cell
from pvcbench.errors import UserError
from pvcbench.policy import Method, OutOfReach

BASE = {"press": "SnapKVPress"}
TWO = [{"press": "KnormPress", "options": {"compression_ratio": 0.3}}]
TWO += [{"press": "KeyDiffPress", "options": {"compression_ratio": 0.4}}]
OPTIONS = {  # of presses whose defaults keep everything, or that need more than a press inside them
    "ComposedPress": {"presses": TWO},
    "PerLayerCompressionPress": {"press": "KnormPress", "compression_ratios": [0.5, 0.25] * 64},
    "DMSPress": {"press": "KnormPress", "threshold": -12.0},
    "SimLayerKVPress": {"lazy_threshold": 0.5, "n_recent": 128},
    "ThinKPress": {"key_channel_compression_ratio": 0.5},
    "RandomPress": {"seed": 0},
}
ABSTRACT = ("BasePress", "ScorerPress")
FILES = "reads files that kvpress loads from a hub when it meets a model"
WHY = {"LagKVPress": "where ranks tie between partitions, the earlier stays here, any of them there"}


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
    for options in [OPTIONS[name]] if name in OPTIONS else [{}, BASE]:
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


def kept_by_us(engine: Engine, ids: torch.Tensor, method: Method, budget: int) -> list[list[set[int]]]:
    """What our run of a press keeps, as [layer][head]."""
    asked = None if method.own_budget is not None else budget
    method = method.resolve(asked, engine.shape(ids.shape[1]))
    prefill = engine.prefill(ids, [method])
    [group] = engine.fork(prefill, [Cell("x", method, asked)], 0)
    return [[{place for place in head.tolist() if place >= 0} for head in layer.positions[0]] for layer in group.layers]


def compared(engine: Engine, peer: Peer, ids: torch.Tensor, ratio: float, presses: list[Named], overlaps) -> list[dict]:
    """One line for every press that runs on both sides, and one with the reason for every other."""
    lines = []
    for one in presses:
        line = {"press": one.name, "options": one.options, "reason": one.reason}
        if one.method is not None:
            try:
                line |= both(engine, peer, ids, ratio, one, overlaps)
            except (OutOfReach, PeerFailed) as error:
                line["reason"] = str(error)
        lines.append(line)
        print(f"{one.name}: {line.get('mean', line['reason'])}", file=sys.stderr)
    return lines


def both(engine, peer, ids, ratio, one: Named, overlaps) -> dict:
    """The kept sets of both sides: sizes, and the overlap by layer."""
    theirs = peer.ask("keep", press=one.request, ids=ids[0].tolist(), ratio=ratio, seed=0)["kept"]
    ours = kept_by_us(engine, ids, one.method, int(ids.shape[1] * (1 - ratio)))
    sizes = {side: mean_size(kept) for side, kept in (("kept", ours), ("kept_there", theirs))}
    shares = overlaps(ours, theirs)
    facts = one.method.facts
    chosen = "its own size" if facts.own_size else "its scores" if facts.by_scores else "its hook"
    numbers = {"mean": round(sum(shares) / len(shares), 4), "least": round(min(shares), 4)}
    return {"by": chosen, **sizes, **numbers, "why": WHY.get(one.name, "")}


def mean_size(kept) -> float:
    """Entries per KV head, mean over layers."""
    heads = [len(head) for layer in kept for head in layer]
    return round(sum(heads) / len(heads), 2)
