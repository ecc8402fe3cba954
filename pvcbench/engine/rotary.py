"""Moving keys after RoPE to other positions, by the model's own tables."""

import torch
from jaxtyping import Float
from torch import Tensor


def rotate(
    key: Float[Tensor, "batch kv_heads slots dim"],
    shift: int,
    table: tuple[Float[Tensor, "rows positions rotary"], Float[Tensor, "rows positions rotary"]],
) -> Float[Tensor, "batch kv_heads slots dim"]:
    """Keys after RoPE moved `shift` positions on, by the model's own cos and sin of positions 0, 1, ... (row 0's)."""
    cos, sin = table
    last = cos.shape[1] - 1
    while shift > 0:
        step = min(shift, last)
        key = turn(key, cos[0, step], sin[0, step])
        shift -= step
    return key


def turn(
    vectors: Float[Tensor, "batch heads rows dim"],
    cos: Float[Tensor, "*rows rotary"],
    sin: Float[Tensor, "*rows rotary"],
) -> Float[Tensor, "batch heads rows dim"]:
    """Vectors turned by the angles of one position, or of one each; only the first `rotary` dimensions turn.

    Dividing by the norm of cos and sin leaves out YaRN's scaling, which keys after RoPE carry already.
    """
    width = cos.shape[-1]
    cos, sin = cos.to(vectors.dtype), sin.to(vectors.dtype)
    first, second = vectors[..., :width].chunk(2, -1)
    turned = (vectors[..., :width] * cos + torch.cat((-second, first), -1) * sin) / (cos * cos + sin * sin).sqrt()
    return torch.cat((turned, vectors[..., width:]), -1)


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
