"""Rotary embedding: one set of tables for a whole sequence, and moving keys to other positions by the model's own.

LongRoPE and dynamic NTK choose their tables by the last position of a *call*, and dynamic NTK remembers the longest
call so far. Cut into chunks, steps or budgets, a sequence would mix tables, and differ with what ran before it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

CHANGING = ("longrope", "dynamic")  # kinds of rotary embedding in transformers whose tables depend on the call


class Reach:
    """Makes rotary embeddings a function of position and of how many tokens a sequence has, and of nothing else.

    Within `Reach.of(tokens)` the model's tables are those that it uses in one call over so many tokens. `modules` is
    empty where tables never change; then nothing is touched.
    """

    def __init__(self, model: nn.Module):
        self.modules = [module for module in model.modules() if changing(module)]
        self.tokens: int | None = None
        self.hooks = []
        for module in self.modules:
            self.hooks.append(module.register_forward_pre_hook(self._before, with_kwargs=True))
            self.hooks.append(module.register_forward_hook(self._after))

    def release(self) -> None:
        """Gives the model back as it was before anything ran."""
        for hook in self.hooks:
            hook.remove()
        self.hooks = []
        for module in self.modules:
            forget(module)

    def _before(self, module, args, kwargs):
        """Adds the sequence's last position to those asked for, on a module that remembers no other call."""
        forget(module)
        if self.tokens is None:
            return None

        def longer(value):
            if not isinstance(value, Tensor) or value.is_floating_point():
                return value
            last = value.new_full((*value.shape[:-1], 1), self.tokens - 1)
            return torch.cat((value, last), -1)

        return tuple(map(longer, args)), {name: longer(value) for name, value in kwargs.items()}

    def _after(self, module, args, output):
        if self.tokens is None:
            return output
        return output[..., :-1, :] if isinstance(output, Tensor) else tuple(part[..., :-1, :] for part in output)

    def differs(self, one: int, other: int) -> bool:
        """Whether sequences of so many tokens are rotated by other tables."""
        if one == other or not self.modules:
            return False
        return any(not torch.equal(*pair) for pair in zip(self._first(one), self._first(other), strict=True))

    def same_until(self, tokens: int, most: int) -> int:
        """The longest sequence, of at most `most` tokens, that is rotated as one of `tokens` is."""
        low, high = tokens, most
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (low, middle - 1) if self.differs(tokens, middle) else (middle, high)
        return low

    def refusal(self, tokens: int, most: int) -> str:
        """Why a sequence that begins with so many tokens cannot grow to `most`, and what to do."""
        kinds = {name for module in self.modules for kind in kinds_of(module) for name in CHANGING if name in kind}
        last = self.same_until(tokens, most)
        what = f"this model's rotary embedding ({'/'.join(sorted(kinds))}) changes beyond {last} tokens"
        what += f", so a cache of {tokens} tokens cannot go on to {most}: keep prompt and answer within {last} tokens"
        return what + (", or begin with a longer prompt" if "longrope" in kinds else "")

    def _first(self, tokens: int) -> list[Float[Tensor, "1 1 rotary"]]:
        """Cos and sin of position 1 in sequences of so many tokens, by every module and kind of layer."""
        found, self.tokens = [], tokens
        try:
            for module in self.modules:
                kinds = module.rope_type if isinstance(module.rope_type, dict) else {None: None}
                device = next(module.buffers()).device
                kind_of, place = torch.zeros(1, device=device), torch.ones(1, 1, dtype=torch.int64, device=device)
                for kind in kinds:
                    found += module(kind_of, place, **({} if kind is None else {"layer_type": kind}))
        finally:
            self.tokens = None
        return found


def kinds_of(module: nn.Module) -> list[str]:
    """The kinds of rotary embedding that a module makes tables of; none for any other module."""
    known = getattr(module, "rope_type", None)
    return [str(kind) for kind in (known.values() if isinstance(known, dict) else [known]) if kind is not None]


def changing(module: nn.Module) -> bool:
    """Whether the tables of a module depend on the call that asks for them."""
    return any(name in kind for kind in kinds_of(module) for name in CHANGING)


def forget(module: nn.Module) -> None:
    """Brings a module of dynamic NTK back to the frequencies that it was made with."""
    kinds = module.rope_type if isinstance(module.rope_type, dict) else {None: module.rope_type}
    for layer, kind in kinds.items():
        if "dynamic" not in str(kind):
            continue
        prefix = "" if layer is None else f"{layer}_"
        original = getattr(module, f"{prefix}original_inv_freq")
        current = getattr(module, f"{prefix}inv_freq")
        module.register_buffer(f"{prefix}inv_freq", original.to(current.device).clone(), persistent=False)
        setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)


@dataclass(frozen=True)
class Form:
    """One way of rotating: which dimensions turn together, and where a table holds the angle of each."""

    other: Callable[[Tensor], Tensor] | None  # the dimension that each turns with, signed; None: nothing turns
    spread: Callable[[Tensor], Tensor] = lambda part: part  # a table's cos or sin as one number per dimension
    backwards: bool = False  # whether angles count the other way

    def tables(self, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Cos and sin of each dimension that turns."""
        cos, sin = self.spread(cos), self.spread(sin)
        return cos, -sin if self.backwards else sin


def _half(vectors: Tensor) -> Tensor:
    """Dimension i turns with dimension i + rotary/2."""
    first, second = vectors.chunk(2, -1)
    return torch.cat((-second, first), -1)


def _neighbour(vectors: Tensor) -> Tensor:
    """Dimension 2i turns with dimension 2i + 1."""
    return torch.stack((-vectors[..., 1::2], vectors[..., ::2]), -1).flatten(-2)


def _twice(part: Tensor) -> Tensor:
    return torch.cat((part, part), -1)


def _each_twice(part: Tensor) -> Tensor:
    return part.repeat_interleave(2, -1)


def _first_half_each_twice(part: Tensor) -> Tensor:
    return _each_twice(part[..., : part.shape[-1] // 2])


UNTURNED = Form(None)  # a layer without position embedding
HALVES = Form(_half)  # Llama and most others
FORMS = (
    UNTURNED,
    HALVES,
    Form(_neighbour),  # Cohere: the tables name each angle twice in turn
    Form(_neighbour, _first_half_each_twice),  # GLM and Ernie: the tables hold all angles twice
    Form(_half, backwards=True),  # NanoChat
    Form(_half, _twice),  # GPT-OSS: the tables name each angle once
    Form(_neighbour, _each_twice),  # Llama 4 and DeepSeek-V2: the same, as complex numbers
)
LOOSE = {torch.float64: 1e-4, torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.02}  # of the largest number


@dataclass(frozen=True, eq=False)
class Turn:
    """How the keys, or the queries, of a layer turn with their positions."""

    form: Form = HALVES
    gain: Float[Tensor, " dim"] | None = None  # what a norm after the rotation multiplies each dimension by

    def fits(self, dim: int, width: int) -> bool:
        """Whether vectors of this size can turn so by a table of this width."""
        return self.form.other is None or self.form.spread(torch.empty(width)).shape[-1] <= dim

    def __call__(self, vectors: Float[Tensor, "*batch dim"], cos: Tensor, sin: Tensor, unit: bool = False) -> Tensor:
        """Vectors turned by the numbers of a table, by `unit` as if they were of norm 1; other dimensions stay."""
        if self.form.other is None:
            return vectors
        cos, sin = self.form.tables(cos, sin)
        width = cos.shape[-1]
        vectors = vectors if self.gain is None else vectors / self.gain.to(vectors)
        turned = vectors[..., :width] * cos + self.form.other(vectors[..., :width]) * sin
        turned = turned / (cos * cos + sin * sin).sqrt() if unit else turned
        turned = torch.cat((turned, vectors[..., width:]), -1)
        return turned if self.gain is None else turned * self.gain.to(turned)


PLAIN = Turn()
SCALED = "this model multiplies its queries by a number that depends on their position"


def rotate(
    key: Float[Tensor, "batch kv_heads slots dim"],
    shift: int,
    table: tuple[Float[Tensor, "rows positions rotary"], Float[Tensor, "rows positions rotary"]],
    how: Turn = PLAIN,
) -> Float[Tensor, "batch kv_heads slots dim"]:
    """Keys after RoPE moved `shift` positions on, by the model's own cos and sin of positions 0, 1, ... (row 0's)."""
    cos, sin = table
    last = cos.shape[1] - 1
    while shift > 0:
        step = min(shift, last)
        key = turn(key, cos[0, step], sin[0, step], how)
        shift -= step
    return key


def turn(
    vectors: Float[Tensor, "batch heads rows dim"],
    cos: Float[Tensor, "*rows rotary"],
    sin: Float[Tensor, "*rows rotary"],
    how: Turn = PLAIN,
) -> Float[Tensor, "batch heads rows dim"]:
    """Vectors turned by the angles of one position, or of one each; the dimensions that do not turn stay.

    Dividing by the norm of cos and sin leaves out YaRN's scaling, which keys after RoPE carry already.
    """
    return how(vectors, cos.to(vectors.dtype), sin.to(vectors.dtype), True)


def turned_back(
    how: Turn, table: tuple[Tensor, Tensor] | None, keys: Float[Tensor, "batch kv_heads entries dim"]
) -> Float[Tensor, "batch kv_heads entries dim"]:
    """Keys after RoPE as they were before it, by the table of their positions; float32 or better."""
    keys = keys.to(torch.promote_types(keys.dtype, torch.float32))
    if how.form.other is None or table is None:
        return keys
    cos, sin = (part[:, None].to(keys.dtype) for part in table)
    square = cos * cos + sin * sin
    return how(keys, cos / square, -sin / square)


def tables_among(args: tuple, kwargs: dict) -> Tensor | tuple[Tensor, Tensor] | None:
    """The rotary tables among the inputs of a decoder layer: cos and sin, or both as complex numbers."""
    named = kwargs.get("position_embeddings")
    return next((value for value in (named, *args) if is_table(value)), None)


def is_table(value) -> bool:
    """Whether an input is cos and sin, or complex numbers that hold both."""
    if isinstance(value, Tensor):
        return value.is_complex()
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(part, Tensor) for part in value)


def cos_sin(table: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Cos and sin of a table in any of its shapes."""
    return (table.real, table.imag) if isinstance(table, Tensor) else table


def best_turn(off: Callable[[Turn], float], gains: list[Tensor], dim: int, width: int, most: float) -> Turn | None:
    """The way of turning that is least `off`, with a norm after the rotation or without, if that is `most` at most."""
    ways = [Turn(form, gain) for gain in (None, *gains) for form in FORMS]
    errors = {how: off(how) for how in ways if how.fits(dim, width)}
    best = min(errors, key=errors.get)
    return best if errors[best] <= most else None


def gains_of(attention: nn.Module, like: Float[Tensor, "batch heads rows dim"]) -> list[Float[Tensor, " dim"]]:
    """What the norms of an attention that run head by head make of equal numbers: their gains, up to a factor.

    Gains that are the same for all numbers turn nothing and are left out: no way of turning tells them from none.
    """
    found, dim = [], like.shape[-1]
    for module in attention.modules():
        weights = list(module.parameters())
        if list(module.children()) or len(weights) != 1 or weights[0].shape != (dim,):
            continue
        found.append(module(torch.ones_like(like[:1, :1, :1]))[0, 0, 0])
    return [gain for gain in found if bool((gain != 0).all()) and not torch.allclose(gain, gain[:1], rtol=1e-5)]


def form_of(
    plain: Float[Tensor, "batch heads rows dim"],
    turned: Float[Tensor, "batch heads rows dim"],
    cos: Float[Tensor, "batch rows rotary"],
    sin: Float[Tensor, "batch rows rotary"],
    gains: list[Tensor],
) -> Turn | None:
    """How a layer rotates, by queries before and after it did; None where it is none of the known ways."""
    parts, size = [part[:, None] for part in (cos, sin)], turned.abs().max().clamp(min=1e-30)

    def off(how):
        return ((how(plain, *parts) - turned).abs().max() / size).item()

    return best_turn(off, gains, plain.shape[-1], cos.shape[-1], LOOSE[turned.dtype])


def moved_by(
    here: Float[Tensor, "batch heads rows dim"],
    there: Float[Tensor, "batch heads rows dim"],
    shift: int,
    table: tuple[Tensor, Tensor] | None,
    gains: list[Tensor],
    most: float,
) -> Turn | None:
    """How a layer rotates, by the same vectors at positions that lie `shift` apart; None where no known way fits.

    What half of the tokens say counts: in a mixture of experts rounding may send a token elsewhere.
    """
    here, there = here.double(), there.double()
    size = here.abs().max()

    def off(how):
        moved = here if table is None or how.form.other is None else rotate(here, shift, table, how)
        return ((moved - there).abs().amax((0, 1, 3)).median() / size).item()

    if table is None:
        return Turn(UNTURNED) if off(PLAIN) <= most else None
    return best_turn(off, gains, here.shape[-1], table[0].shape[-1], most)


def mean_rotation(
    how: Turn, table: tuple[Float[Tensor, "rows positions rotary"], ...], dim: int, first: int, count: int
) -> Float[Tensor, "dim dim"]:
    """The mean rotation of the positions first, first + 1, ... as a matrix for row vectors, as the layer scales it."""
    cos, sin = table[0][0, 0].to(torch.promote_types(table[0].dtype, torch.float32)), table[1][0, 0]
    scaling = (cos * cos + sin * sin).sqrt()
    mean = (part.mean(0) * scaling for part in angles(table, first, count))
    return how(torch.eye(dim, dtype=cos.dtype, device=cos.device), *mean)


def angles(
    table: tuple[Float[Tensor, "rows positions rotary"], Float[Tensor, "rows positions rotary"]], first: int, count: int
) -> tuple[Float[Tensor, "count rotary"], Float[Tensor, "count rotary"]]:
    """Cos and sin of the shifts first, first + 1, ..., of norm 1, also beyond the end of the table (float32 or better).

    A shift beyond the table is whole turns by its last position and a rest, as `rotate` makes them.
    """
    cos, sin = (part[0].to(torch.promote_types(part.dtype, torch.float32)) for part in table)
    norm = (cos * cos + sin * sin).sqrt()
    cos, sin, last = cos / norm, sin / norm, table[0].shape[1] - 1
    shifts = torch.arange(first, first + count, device=cos.device)
    rest = shifts % last
    c, s = cos[rest], sin[rest]
    for turns in range(1, (first + count - 1) // last + 1):
        turned = c * cos[last] - s * sin[last], s * cos[last] + c * sin[last]
        more = (shifts // last >= turns)[:, None]
        c, s = torch.where(more, turned[0], c), torch.where(more, turned[1], s)
    return c, s
