"""A hash of the weights that were really loaded."""

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch takes seconds, and who asks for versions has none
    import torch

ELEMENTS = 4096  # of each tensor that the checksum of a loaded model looks at


def weights_checksum(model: "torch.nn.Module") -> str | None:
    """A hash of what was really loaded: names, shapes, dtypes and up to ELEMENTS evenly spaced values of each tensor.

    None where tensors are not in memory (offloaded ones). Another revision, quantisation or random seed changes it;
    a single altered weight may not.
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.is_meta:
            return None
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        flat = tensor.detach().reshape(-1)
        picked = flat[:: max(1, -(-flat.numel() // ELEMENTS))].contiguous().cpu()
        digest.update(picked.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
