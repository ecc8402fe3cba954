"""The gates of Fast KVzip: what their files hold, and what they make of hidden states."""

from pvcbench.policy import UserError, torch

PARTS = ("q_proj.weight", "q_proj.bias", "k_proj.weight", "q_norm.weight", "k_norm.weight", "k_base", "b")


def gate(weights, layer, file):
    """The tensors of a layer's gate by name; `module.` may stand before the layer's number."""
    start = next((start for start in ("module.", "") if f"{start}{layer}.k_base" in weights), "")
    lacking = [f"{layer}.{name}" for name in PARTS if f"{start}{layer}.{name}" not in weights]
    if lacking:
        raise UserError(f"{file} holds no gates of Fast KVzip: it has no tensor {lacking[0]}")
    return {name: weights[f"{start}{layer}.{name}"] for name in PARTS}


def opened(parts, hidden):
    """The scores of entries, [batch, kv_heads, entries]: how wide each KV head's gate opens for them."""
    learnt = parts["k_base"][:, 0]  # KV heads, learnt keys, width
    sizes, scale = (len(learnt), -1, learnt.shape[-1]), learnt.shape[-1] ** -0.5
    queries = normed((hidden @ parts["q_proj.weight"].T + parts["q_proj.bias"]).unflatten(-1, sizes))
    keys = normed((hidden @ parts["k_proj.weight"].T).unflatten(-1, sizes)) * parts["k_norm.weight"]
    queries = queries * parts["q_norm.weight"]  # batch, entries, KV heads, a group's queries, width
    own = (queries * keys).sum(-1) * scale + parts["b"][:, 0]
    others = (queries @ learnt.mT * scale).logsumexp(-1)
    return torch.sigmoid(own - others).mean(-1).transpose(1, 2)


def normed(vectors, epsilon=1e-6):
    """Vectors whose numbers have a mean square of 1."""
    return vectors * (vectors.square().mean(-1, keepdim=True) + epsilon).rsqrt()
