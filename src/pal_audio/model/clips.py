"""Clips as encoders want them, before the model sees them.

Shapes: C clips, W encoder windows.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pal_audio.encoders.base import Frames, join_frames
from pal_audio.errors import PalError
from pal_audio.model.configuration import check_every_encoder


@dataclass
class ClipFeatures:
    """One clip as the encoders want it: by encoder name, windows (W, ...) and samples at that encoder's rate.

    Where a frozen encoder's frames are known already, they stand in the place of the windows."""

    features: Mapping[str, Tensor | Frames]
    num_samples: dict[str, int]


def check_clip(clip: ClipFeatures, names: Collection[str]) -> None:
    """That a clip is there for exactly these encoders.

    Raises:
        PalError: it is not.
    """
    for given in (clip.features, clip.num_samples):
        check_every_encoder(given, names, "this clip has features for")


def collate(clips: Sequence[ClipFeatures], names: Collection[str]) -> dict[str, Any]:
    """See `PalProcessor.collate_clips`; `names` are those of the model's encoders."""
    for clip in clips:
        check_clip(clip, names)
    features = {name: _joined([clip.features[name] for clip in clips]) for name in names}
    samples = {name: torch.tensor([clip.num_samples[name] for clip in clips]) for name in names}
    if len(names) == 1:
        name = next(iter(names))
        return {"input_features": features[name], "audio_num_samples": samples[name]}
    return {"input_features": features, "audio_num_samples": samples}


def sources_of(audio: Any) -> list[Any]:
    """One source or a list of them, as a list."""
    if audio is None:
        return []
    # A (array, rate) pair is one clip, as in `load_audio`.
    is_pair = isinstance(audio, tuple) and len(audio) == 2 and isinstance(audio[0], np.ndarray) and isinstance(audio[1], Real)
    return list(audio) if isinstance(audio, list | tuple) and not is_pair else [audio]


def _joined(clips: list[Tensor | Frames]) -> Tensor | Frames:
    """Windows of all clips one after another, padded with zeros to the longest window; or the frames of all clips."""
    ready = [clip for clip in clips if isinstance(clip, Frames)]
    windows = [window for clip in clips if isinstance(clip, Tensor) for window in clip]
    if ready and windows:
        raise PalError("some clips of this batch hold frames and others features; give all of them in one form")
    return join_frames(ready) if ready else torch.nn.utils.rnn.pad_sequence(windows, batch_first=True)
