"""Attention kernels in Triton: each row's LSE, the weighted column sums, and one decoding step over cache slots.

Memory is linear in the context, no sum is atomic, and nothing waits for the host but the search for a weight set's
rows. Inputs are bfloat16, float16 or float32, with any strides; sums are float32. On a CPU the kernels run in
Triton's interpreter (TRITON_INTERPRET=1, set before Triton is imported).
"""

import os
from functools import wraps

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pvcbench.errors import UserError

REDUCTIONS = ("none", "sum", "mean")
LOG2E = 1.4426950408889634
# Tiles by bytes of a padded head: keys, rows, warps, stages. A block of keys stays, tiles of rows pass by.
COLUMN_TILES = {128: (128, 64, 8, 3), 256: (128, 64, 8, 3), 512: (64, 64, 4, 2)}
LSE_TILES = {128: (128, 64, 4, 3), 256: (128, 64, 8, 3), 512: (64, 64, 4, 2)}  # rows, keys, warps, stages
EXACT_TILES = (32, 32, 8, 1)  # float32 products are formed without tensor cores
INTERPRETED_TILES = (64, 64, 4, 1)
DECODE_COLUMNS = 64
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
WIDEST = 256  # the largest head whose tiles fit into a multiprocessor


def available(device: torch.device) -> str | None:
    """None where the kernels run on this device, else what is missing."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return "needs Triton: pip install triton"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"needs a GPU, and the device is {device.type}"
    return None


def require(backend: str, device: torch.device) -> None:
    """Raises UserError where a backend of the engine cannot run on a device."""
    missing = available(device) if backend == "triton" else None
    if missing is not None:
        raise UserError(f"engine.backend=triton {missing}; or set engine.backend=blocked")


def covers(*tensors: Tensor) -> bool:
    """Whether the kernels take tensors of these dtypes and head sizes."""
    return all(tensor.dtype in DTYPES and tensor.shape[-1] <= WIDEST for tensor in tensors)


def reduced(
    mass: Float[Tensor, "sets batch heads keys"], kv_heads: int, group: str
) -> Float[Tensor, "sets batch columns keys"]:
    """The mass of query heads as it is ("none"), or that of KV heads: the "sum" or "mean" over those that share one."""
    if group not in REDUCTIONS:
        raise ValueError(f"unknown reduction {group!r}: choose from {', '.join(REDUCTIONS)}")
    if group == "none":
        return mass
    grouped = mass.unflatten(2, (kv_heads, -1))
    return grouped.sum(3) if group == "sum" else grouped.mean(3)


def _on_its_device(function):
    """Launches on the GPU that the query is on, where a model is spread over several."""

    @wraps(function)
    def run(query, *args, **kwargs):
        with torch.cuda.device_of(query):
            return function(query, *args, **kwargs)

    return run


@_on_its_device
def row_lse(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch kv_heads keys dim"],
    scale: float,
    tiles: tuple[int, int, int, int] | None = None,
    cap: float | None = None,
) -> Float[Tensor, "batch heads queries"]:
    """The log of the sum of exponentials of each row's logits; the queries are the last rows of a causal context.

    With `cap`, logits are pressed into (-cap, cap) before.
    """
    from pvcbench.engine.kernels.triton_programs import row_lse_program

    query, key = _contiguous(query), _contiguous(key)
    (batch, heads, queries, dim), (kv_heads, keys) = query.shape, key.shape[1:3]
    width = _width(dim)
    rows, columns, warps, stages = tiles or _tiles(LSE_TILES, query, width)
    lse = torch.empty(batch, heads, queries, dtype=torch.float32, device=query.device)
    row_lse_program[batch * heads, -(-queries // rows)](
        query, key, lse, *query.stride()[:3], *key.stride()[:3], heads, queries, keys,
        scale * LOG2E, (cap or 0.0) * LOG2E, GROUP=heads // kv_heads, DIM=dim, WIDTH=width,
        ROWS=rows, COLUMNS=columns, CAPPED=cap is not None, WIDEN=_widen(query),
        num_warps=warps, num_stages=stages, enable_fp_fusion=True,
    )  # fmt: skip
    return lse


@_on_its_device
def column_mass(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch kv_heads keys dim"],
    row_weights: Float[Tensor, "sets queries"],
    lse: Float[Tensor, "batch heads queries"],
    scale: float,
    group: str = "none",
    tiles: tuple[int, int, int, int] | None = None,
    cap: float | None = None,
) -> Float[Tensor, "sets batch columns keys"]:
    """Weighted column sums of causal attention by its rows' LSE, in float32: what each key receives.

    The queries are the last rows of the context. An LSE that counts a sink leaves the sink its share; `cap` is as in
    `row_lse`. `group` "none" gives query heads; "sum" and "mean" reduce the heads that share a KV head. Each set of
    weights is one launch over the rows from its first to its last that is not 0.
    """
    from pvcbench.engine.kernels.triton_programs import column_mass_program

    if group not in REDUCTIONS:
        raise ValueError(f"unknown reduction {group!r}: choose from {', '.join(REDUCTIONS)}")
    query, key, lse = _contiguous(query), _contiguous(key), _contiguous(lse)
    (batch, heads, queries, dim), (kv_heads, keys) = query.shape, key.shape[1:3]
    sharing, width = heads // kv_heads, _width(dim)
    own = 1 if group == "none" else sharing
    columns, rows, warps, stages = tiles or _tiles(COLUMN_TILES, query, width)
    weights = row_weights.to(query.device, torch.float32).contiguous()
    shape = len(weights), batch, heads // own, keys
    mass = torch.empty(shape, dtype=torch.float32, device=query.device)
    for part, each, (first, last) in zip(mass, weights, _ranges(weights), strict=True):
        column_mass_program[batch * heads // own, -(-keys // columns)](
            query, key, each, lse, part, *query.stride()[:3], *key.stride()[:3], *lse.stride()[:2],
            heads, queries, keys, first, last, scale * LOG2E, (cap or 0.0) * LOG2E,
            1.0 / own if group == "mean" else 1.0, GROUP=sharing, OWN=own, DIM=dim, WIDTH=width,
            COLUMNS=columns, ROWS=rows, CAPPED=cap is not None, WIDEN=_widen(query),
            num_warps=warps, num_stages=stages, enable_fp_fusion=True,
        )  # fmt: skip
    return mass


@_on_its_device
def slot_decode(
    query: Float[Tensor, "batch heads 1 dim"],
    keys: Float[Tensor, "batch kv_heads slots dim"],
    values: Float[Tensor, "batch kv_heads slots value_dim"],
    lengths: Int[Tensor, "batch kv_heads"],
    scale: float,
    weights: bool = False,
    splits: int | None = None,
    cap: float | None = None,
    sinks: Float[Tensor, " heads"] | None = None,
) -> tuple[Float[Tensor, "batch heads 1 value_dim"], Float[Tensor, "batch heads slots"] | None]:
    """Attention of one new query over the filled slots of each KV head, and with `weights` its weights in float32.

    `lengths` is read on the device, and slots beyond it are not: their weights are 0. The number of splits depends on
    shapes alone, so that a CUDA graph may capture the call. `cap` is as in `row_lse`; `sinks` are logits that take
    their share of each head's weights and give nothing.
    """
    from pvcbench.engine.kernels.triton_programs import slot_decode_program, weights_program

    query, keys, values = _contiguous(query), _contiguous(keys), _contiguous(values)
    (batch, heads, _, dim), (kv_heads, slots), value_dim = query.shape, keys.shape[1:3], values.shape[3]
    sharing, where = heads // kv_heads, {"device": query.device, "dtype": torch.float32}
    columns = DECODE_COLUMNS if _width(dim) * query.element_size() <= 256 else DECODE_COLUMNS // 2
    splits = splits or _splits(batch * kv_heads, slots, query.device)
    partial = torch.empty(batch, heads, splits, value_dim, **where)
    norms = torch.empty(batch, heads, splits, **where)
    attention = torch.empty(batch, heads, slots if weights else 0, **where)
    slot_decode_program[batch * kv_heads, splits](
        query, keys, values, lengths, partial, norms, attention,
        *query.stride()[:2], *keys.stride()[:3], *values.stride()[:3], *lengths.stride(),
        kv_heads, slots, scale * LOG2E, (cap or 0.0) * LOG2E, GROUP=sharing, TILE=_width(sharing),
        DIM=dim, WIDTH=_width(dim), VALUE_DIM=value_dim, VALUE_WIDTH=_width(value_dim), COLUMNS=columns,
        SPLITS=splits, WEIGHTS=weights, CAPPED=cap is not None, WIDEN=_widen(query),
        num_warps=4, num_stages=2, enable_fp_fusion=True,
    )  # fmt: skip
    output, lse = _combined(partial, norms, query.dtype, sinks)
    if weights:
        weights_program[batch * heads, -(-slots // 1024)](
            attention, lse, lengths, *lengths.stride(), heads, slots, GROUP=sharing, COLUMNS=1024
        )
    return output, attention if weights else None


def _combined(partial, norms, dtype, sinks):
    """Output and LSE (base 2) of each head from those of its splits and its sink."""
    from pvcbench.engine.kernels.triton_programs import combine_program

    batch, heads, splits, value_dim = partial.shape
    output = torch.empty(batch, heads, 1, value_dim, dtype=dtype, device=partial.device)
    lse = torch.empty(batch * heads, dtype=torch.float32, device=partial.device)
    sunk = lse if sinks is None else sinks.to(lse).contiguous()  # not read where there are none
    combine_program[(batch * heads,)](
        partial, norms, sunk, output, lse, heads,
        VALUE_DIM=value_dim, VALUE_WIDTH=_width(value_dim), SPLITS=splits, SINKS=sinks is not None,
    )  # fmt: skip
    return output, lse


def _contiguous(tensor):
    """The tensor, its last dimension contiguous."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _widen(tensor):
    """Whether tiles must become float32: in the interpreter."""
    return not tensor.is_cuda and tensor.dtype != torch.float32


def _width(size):
    """The tile that holds a size: a power of two, and at least what a matrix product takes."""
    return max(16, 1 << (size - 1).bit_length())


def _tiles(known, query, width):
    """Sizes of a launch by the bytes of a padded head."""
    if not query.is_cuda:
        return INTERPRETED_TILES
    if query.dtype == torch.float32:
        return EXACT_TILES
    return known[max(128, width * query.element_size())]


def _ranges(weights):
    """The first row with weight and the row after the last, for each set; an empty range where all are 0."""
    real = weights != 0
    first = real.int().argmax(-1)
    last = real.shape[-1] - real.flip(-1).int().argmax(-1)
    return torch.stack((first, torch.where(real.any(-1), last, first)), -1).tolist()


def _splits(programs, slots, device):
    """A power of two that gives each multiprocessor about four programs, if there are blocks of slots enough."""
    if device.type != "cuda":
        return 4
    wanted = 4 * torch.cuda.get_device_properties(device).multi_processor_count / programs
    most = min(64.0, max(1.0, slots / DECODE_COLUMNS), max(1.0, wanted))
    return 1 << int(most).bit_length() - 1
