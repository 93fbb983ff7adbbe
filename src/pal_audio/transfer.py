"""Small tensors on their way from the CPU to a model's device."""

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; the host does not wait for it.

    From pageable memory more than 64 KiB are copied only when a GPU has done all that is queued there, `non_blocking` or not, and
    a step that makes one such copy begins on an idle GPU. From pinned memory nothing waits.
    """
    if device.type == "cuda" and tensor.is_cpu:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
