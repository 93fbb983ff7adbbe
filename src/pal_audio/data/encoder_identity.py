"""Which encoder made some frames: its configuration and every bit of its weights."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from pal_audio.config import StrictConfig
from pal_audio.encoders.base import AudioEncoder, EncoderConfig
from pal_audio.errors import PalError


class EncoderIdentity(StrictConfig):
    """What frames depend on beside the sound: `config`, `front_end` and the SHA-256 of all weights."""

    config: dict[str, Any]
    front_end: dict[str, Any]
    weights: str

    @classmethod
    def of(cls, encoder: AudioEncoder) -> "EncoderIdentity":
        config = encoder.config
        fields = config.resolved().model_dump(mode="json", exclude={"checkpoint", "frozen"})
        sizes = {"sampling_rate_hz": config.sampling_rate_hz, "window_samples": config.window_samples}
        return cls(config=fields, front_end={"type": type(config.front_end()).__name__, **sizes}, weights=_weights(encoder))

    @property
    def id(self) -> str:
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()


def check_frozen(encoders: Mapping[str, EncoderConfig]) -> None:
    """That frames of these encoders never change while a model trains.

    Raises:
        PalError: the first whose frames may.
    """
    for name, config in encoders.items():
        if not config.frozen:
            raise PalError(f"encoder {name!r} is not frozen, so its frames cannot be cached; write frozen: true")
        if getattr(config, "spec_augment", False):
            raise PalError(f"encoder {name!r}: spec_augment changes what it hears in training, a cache cannot; set it to false")


def _weights(encoder: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
