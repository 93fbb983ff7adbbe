"""Inputs go to the device that computes."""

from typing import Any

import torch

from pal_audio.encoders.base import Frames


def to_device(value: Any, device: torch.device) -> Any:
    """Inputs on a device; dicts, as of several encoders, are walked through."""
    if isinstance(value, dict):
        return {key: to_device(item, device) for key, item in value.items()}
    return value.to(device, non_blocking=True) if isinstance(value, torch.Tensor | Frames) else value


def pinned(value: Any) -> Any:
    """The same in page-locked memory, from which copies to a GPU run beside other work."""
    if isinstance(value, dict):
        return {key: pinned(item) for key, item in value.items()}
    return value.pin_memory() if isinstance(value, torch.Tensor | Frames) else value
