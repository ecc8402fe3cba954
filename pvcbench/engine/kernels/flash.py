"""Flash attention that hands out its rows' LSE, and the attention mass the kernels take from it."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_flash_attention
from torch.nn.attention import SDPBackend

from pvcbench.engine.attention import prompt_attention
from pvcbench.engine.kernels.interface import column_mass, row_lse


def attention_with_lse(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch kv_heads keys dim"],
    value: Float[Tensor, "batch kv_heads keys value_dim"],
    scale: float,
    kernel: str = "sdpa",
) -> tuple[Float[Tensor, "batch heads queries value_dim"], Float[Tensor, "batch heads queries"] | None]:
    """`prompt_attention` and, where the library gives it, each row's log of the sum of exponentials.

    The library does where SDPA would take its flash or cuDNN operator (half precision on a GPU), and with flash-attn.
    """
    if kernel == "flash_attention_2":
        from flash_attn import flash_attn_func  # an optional extra

        parts = (tensor.transpose(1, 2) for tensor in (query, key, value))
        output, lse, _ = flash_attn_func(*parts, softmax_scale=scale, causal=True, return_attn_probs=True)
        return output.transpose(1, 2), lse
    choice = _operator(query, key, value, scale)
    if choice == SDPBackend.FLASH_ATTENTION:  # this operator's causal mask is bottom-right, as ours
        flash = torch.ops.aten._scaled_dot_product_flash_attention.default
        output, lse = flash(query, key, value, 0.0, True, False, scale=scale)[:2]
        return output, lse[..., : query.shape[2]]
    if choice == SDPBackend.CUDNN_ATTENTION:
        cudnn = torch.ops.aten._scaled_dot_product_cudnn_attention.default
        output, lse = cudnn(query, key, value, None, True, 0.0, True, False, scale=scale)[:2]
        return output, lse.reshape(query.shape[:3])
    return prompt_attention(query, key, value, scale, kernel), None


def _operator(query, key, value, scale):
    """The operator that SDPA would take, where it is one that gives the LSE of tensors as they are."""
    fits = query.dtype in (torch.float16, torch.bfloat16) and query.shape[-1] == value.shape[-1]
    if not query.is_cuda or not fits or query.shape[-1] % 8:
        return None
    if query.shape[2] != key.shape[2]:  # as torch's causal_lower_right chooses
        usable = can_use_flash_attention(SDPAParams(query, key, value, None, 0.0, False, True))
        return SDPBackend.FLASH_ATTENTION if usable else None
    chosen = torch._fused_sdp_choice(query, key, value, None, 0.0, True, scale=scale, enable_gqa=True)
    return SDPBackend(chosen)


def observed_by_kernels(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch kv_heads keys dim"],
    value: Float[Tensor, "batch kv_heads keys value_dim"] | None,
    weights: Float[Tensor, "sets queries"],
    scale: float,
    group: str = "none",
) -> tuple[Float[Tensor, "batch heads queries value_dim"] | None, Float[Tensor, "sets batch columns keys"]]:
    """Attention output of all rows and the mass by their weights; without values, the mass alone."""
    output, lse = (None, None) if value is None else attention_with_lse(query, key, value, scale)
    return output, mass_by_kernels(query, key, weights, lse, scale, group)


def mass_by_kernels(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch kv_heads keys dim"],
    weights: Float[Tensor, "sets queries"],
    lse: Float[Tensor, "batch heads queries"] | None,
    scale: float,
    group: str = "none",
) -> Float[Tensor, "sets batch columns keys"]:
    """The mass by the rows' weights; their LSE is computed first where no attention operator gave it."""
    lse = row_lse(query, key, scale) if lse is None else lse
    return column_mass(query, key, weights, lse, scale, group)
