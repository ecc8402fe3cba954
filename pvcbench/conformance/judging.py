"""Which published variant an implementation is, by what it kept of the cases."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pvcbench.conformance.golden import Golden
from pvcbench.conformance.keeping import DROPPED_TIED, KEPT, KEPT_TIED
from pvcbench.errors import UserError

LISTED = 3  # variants of other methods that are shown, the nearest


@dataclass(frozen=True)
class Likeness:
    """An implementation beside one variant: a set is what one KV head of one sample keeps at one budget of a case."""

    variant: str
    sets: int  # that were answered
    same: int
    overlap: float  # mean over sets: the entries that both keep, as a share of the larger set
    all_sets: int  # of the variant

    @property
    def is_it(self) -> bool:
        """Whether every set is the same, but for entries of equal worth."""
        return self.sets > 0 and self.same == self.sets

    @property
    def line(self) -> str:
        """What a table says of it."""
        left = "" if self.sets == self.all_sets else f" ({self.all_sets - self.sets} more were not answered)"
        return f"{self.same} of {self.sets} sets the same{left}, overlap {self.overlap:.4f}"


@dataclass(frozen=True)
class Verdict:
    """Beside the variants of the method that was named, and beside all others; nearest first."""

    method: str
    kin: Sequence[Likeness]
    others: Sequence[Likeness]

    @property
    def right(self) -> bool:
        """Whether it is a variant of the method, in every set that the variant has."""
        return any(one.is_it and one.sets == one.all_sets for one in self.kin)

    @property
    def lines(self) -> list[str]:
        """A table of likenesses, and what follows from it."""
        same, unlike = [one for one in self.others if one.is_it], [one for one in self.others if not one.is_it]
        shown = [*self.kin, *same, *unlike[: 0 if self.right or same else LISTED]]
        width = max(len(one.variant) for one in shown)
        marks = ["" if one in self.kin else " (another method)" for one in shown]
        return [
            *(f"{one.variant:<{width}}  {one.line}{mark}" for one, mark in zip(shown, marks, strict=True)),
            self.said,
        ]

    @property
    def said(self) -> str:
        """The verdict in one sentence."""
        names = [one.variant for one in self.kin if one.is_it]
        other = [one.variant for one in self.others if one.is_it]
        if self.right or names:
            far = "" if self.right else ", as far as the sets tell that were answered"
            return f"it is {' or '.join(names)}{', which the cases do not tell apart' * (len(names) > 1)}{far}"
        if other:
            return f"it is no published variant of {self.method}: it is {' or '.join(other)}"
        nearest = max([*self.kin, *self.others], key=lambda one: one.overlap)
        return f"it is no published variant of {self.method}; the nearest is {nearest.variant}"


def judge(golden: Golden, method: str, kept: Mapping[str, Tensor]) -> Verdict:
    """Compares what an implementation kept, by `case_NN/budget_B`, with every variant."""
    names, asked = golden.kin(method), {name.rpartition("/")[0] for name in golden.asked}
    unknown = [name for name in kept if name not in asked]
    if unknown or not kept:
        what = f"what is {unknown[0]!r}?" if unknown else "the file holds nothing."
        raise UserError(f"{what} Names are those of the golden file's budgets, such as {min(asked)}")
    masks = {name: mask_of(name, tensor, like(golden, name)) for name, tensor in kept.items()}
    found = [likeness(golden, variant, masks) for variant in golden.variants]
    near = sorted(found, key=lambda one: (-one.is_it, -one.overlap, one.variant))
    kin = [one for one in near if one.variant in names]
    if not sum(one.sets for one in kin):
        raise UserError(f"no variant of {method} reaches the budgets that the file answers: answer others too")
    return Verdict(method, kin, [one for one in near if one.variant not in names and one.sets])


def like(golden: Golden, name: str) -> Tensor:
    """What one variant keeps there, for the sizes that every answer has."""
    return next(tensor for known, tensor in golden.asked.items() if known.startswith(f"{name}/"))


def mask_of(name: str, given: Tensor, like: Tensor) -> Bool[Tensor, "layers batch kv_heads tokens"]:
    """An answer as a mask: it is one, or indices, -1 where a head keeps fewer. Raises UserError for anything else."""
    if given.dtype in (torch.bool, torch.uint8):
        if given.shape != like.shape:
            raise UserError(
                f"{name}: a mask is [layers, batch, kv_heads, tokens] = {list(like.shape)}, not {list(given.shape)}"
            )
        return given.bool()
    if given.is_floating_point() or given.is_complex() or given.shape[:-1] != like.shape[:-1]:
        kind = str(given.dtype).removeprefix("torch.")
        raise UserError(
            f"{name}: wanted a mask (bool) or whole numbers [layers, batch, kv_heads, kept] = "
            f"{[*like.shape[:-1], 'kept']}, found {kind} {list(given.shape)}"
        )
    given, tokens = given.long(), like.shape[-1]
    if not bool(((given >= -1) & (given < tokens)).all()):
        raise UserError(f"{name}: indices must lie within 0 and {tokens - 1}, or be -1 where a head keeps fewer")
    counts = torch.zeros(*like.shape[:-1], tokens + 1, dtype=torch.int64)
    counts.scatter_add_(-1, given.masked_fill(given < 0, tokens), torch.ones_like(given))
    if bool((counts[..., :tokens] > 1).any()):
        raise UserError(f"{name}: an index stands twice in one head")
    return counts[..., :tokens] > 0


def likeness(golden: Golden, variant: str, masks: Mapping[str, Tensor]) -> Likeness:
    """An implementation beside one variant, over the budgets that both have."""
    own = {name.rpartition("/")[0]: level for name, level in golden.asked.items() if name.endswith(f"/{variant}")}
    pairs = [compared(masks[name], level) for name, level in own.items() if name in masks]
    every = sum(level[..., 0].numel() for level in own.values())
    if not pairs:
        return Likeness(variant, 0, 0, 0.0, every)
    same, shares = (torch.cat([part.flatten() for part in parts]) for parts in zip(*pairs, strict=True))
    return Likeness(variant, len(same), int(same.sum()), shares.mean().item(), every)


def compared(mask: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """For each head whether the set is the variant's, but for equals, and how much both share."""
    must, tied = level == KEPT, (level == KEPT_TIED) | (level == DROPPED_TIED)
    wanted = must.sum(-1) + (level == KEPT_TIED).sum(-1)
    both = (mask & must).sum(-1) + torch.minimum((mask & tied).sum(-1), (level == KEPT_TIED).sum(-1))
    own = mask.sum(-1)
    return (both == wanted) & (own == wanted), both / torch.maximum(own, wanted).clamp(min=1)


def read(path: Path) -> dict[str, Tensor]:
    """The answers of a file."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot read {path}: {' '.join(str(error).split())[:200]}; wanted a safetensors file with what your "
            "implementation keeps (docs/guide/conformance.md)"
        ) from error
