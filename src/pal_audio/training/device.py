"""Inputs go to the device that computes."""

from typing import Any

import torch

from pal_audio.encoders.base import Frames
from pal_audio.transfer import send


def to_device(value: Any, device: torch.device) -> Any:
    """Inputs on a device, to a GPU from page-locked memory; dicts, as of several encoders, are walked through."""
    if isinstance(value, dict):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, Frames):
        return Frames([send(layer, device) for layer in value.layers], value.lengths)
    return send(value, device) if isinstance(value, torch.Tensor) else value
