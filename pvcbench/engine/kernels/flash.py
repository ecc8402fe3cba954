"""The attention operators of libraries that hand out each row's LSE, the log of its sum of exponentials.

An LSE is what lets others go on from an attention that formed no weights: the sink's share of a row is
`sigmoid(sink - lse)`, and the weight of a logit is `exp(logit - lse)`.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_flash_attention
from torch.nn.attention import SDPBackend


def widened(
    value: Float[Tensor, "batch kv_heads keys value_dim"], dim: int
) -> Float[Tensor, "batch kv_heads keys width"]:
    """Values narrower than keys, filled up with zeros: flash operators take one size for both."""
    return value if value.shape[-1] >= dim else F.pad(value, (0, dim - value.shape[-1]))


def flash_attn(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch kv_heads keys dim"],
    value: Float[Tensor, "batch kv_heads keys value_dim"],
    scale: float,
    cap: float | None = None,
) -> tuple[Float[Tensor, "batch heads queries value_dim"], Float[Tensor, "batch heads queries"]]:
    """Causal attention of the last rows by flash-attn, and their LSE."""
    from flash_attn import flash_attn_func  # an optional extra; its causal mask is bottom-right, as ours

    parts = (tensor.transpose(1, 2) for tensor in (query, key, widened(value, query.shape[-1])))
    options = {} if cap is None else {"softcap": cap}  # versions before 2.6 know no softcap
    output, lse, _ = flash_attn_func(*parts, softmax_scale=scale, causal=True, return_attn_probs=True, **options)
    return output.transpose(1, 2)[..., : value.shape[-1]], lse


def sdpa_with_lse(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch kv_heads keys dim"],
    value: Float[Tensor, "batch kv_heads keys value_dim"],
    scale: float,
) -> tuple[Float[Tensor, "batch heads queries value_dim"], Float[Tensor, "batch heads queries"]] | None:
    """Causal attention of the last rows by the operator that SDPA takes, and their LSE; None where it gives none.

    It gives one on a CPU, and on a GPU in half precision where the operator is flash's or cuDNN's.
    """
    size, value = value.shape[-1], widened(value, query.shape[-1])
    if value.shape[-1] != query.shape[-1]:
        return None
    run = _on_gpu if query.is_cuda else _on_cpu if query.device.type == "cpu" else None
    found = None if run is None else run(query, key, value, scale)
    return None if found is None else (found[0][..., :size], found[1])


def _on_cpu(query, key, value, scale):
    """By the operator that SDPA takes on a CPU, for every dtype; it takes each vector to lie in one piece."""
    query, key, value = (one if one.stride(-1) == 1 else one.contiguous() for one in (query, key, value))
    queries, keys = query.shape[2], key.shape[2]
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    if queries == keys:
        return flash(query, key, value, 0.0, True, scale=scale)
    future = torch.full((queries, keys), float("-inf"), dtype=query.dtype).triu(keys - queries + 1)
    return flash(query, key, value, 0.0, False, attn_mask=future, scale=scale)


def _on_gpu(query, key, value, scale):
    """By the operator that SDPA would take on a GPU, where it is one that gives the LSE of tensors as they are."""
    if query.dtype not in (torch.float16, torch.bfloat16) or query.shape[-1] % 8:
        return None
    choice = _choice(query, key, value, scale)
    if choice == SDPBackend.FLASH_ATTENTION:  # this operator's causal mask is bottom-right, as ours
        flash = torch.ops.aten._scaled_dot_product_flash_attention.default
        output, lse = flash(query, key, value, 0.0, True, False, scale=scale)[:2]
        return output, lse[..., : query.shape[2]]
    if choice == SDPBackend.CUDNN_ATTENTION:
        cudnn = torch.ops.aten._scaled_dot_product_cudnn_attention.default
        output, lse = cudnn(query, key, value, None, True, 0.0, True, False, scale=scale)[:2]
        return output, lse.reshape(query.shape[:3])
    return None


def _choice(query, key, value, scale):
    """The operator that SDPA would take."""
    if query.shape[2] != key.shape[2]:  # as torch's causal_lower_right chooses
        usable = can_use_flash_attention(SDPAParams(query, key, value, None, 0.0, False, True))
        return SDPBackend.FLASH_ATTENTION if usable else None
    return SDPBackend(torch._fused_sdp_choice(query, key, value, None, 0.0, True, scale=scale, enable_gqa=True))
