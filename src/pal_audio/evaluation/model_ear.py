"""What a PAL model hears of a clip, without the model: features of sound, or cached frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pal_audio.audio import AudioError, load_audio
from pal_audio.data.frame_cache import FrameCache
from pal_audio.data.manifest import AudioPart
from pal_audio.model import ClipFeatures, PalProcessor

PAUSE_S = 0.2  # between the stretches of a joined clip


@dataclass(frozen=True)
class ModelEar:
    """Hears clips; it may be pickled.

    Args:
        processor: the model's.
        frames: of frozen encoders, read instead of sound where a clip is one stretch.
    """

    processor: PalProcessor
    frames: FrameCache | None

    def __call__(self, clip: Sequence[AudioPart]) -> ClipFeatures:
        if len(clip) > 1:
            return self._of_waves({rate: _joined(clip, rate) for rate in self.processor.sampling_rates_hz})
        part = clip[0]
        if self.frames is not None:
            if not Path(part.path).is_file():
                raise AudioError(f"{part.path}: no such file")
            return ClipFeatures(self.frames.read(part), self.frames.num_samples(part))
        return self.processor.clip(part.path, start_s=part.start_s, end_s=part.end_s)

    def _of_waves(self, waves: dict[int, np.ndarray]) -> ClipFeatures:
        """Features of a clip that is known as a wave by rate."""
        clips = {rate: self.processor.clip(wave, sampling_rate=rate) for rate, wave in waves.items()}
        rate_of = {name: config.sampling_rate_hz for name, config in self.processor._audio.encoders.items()}
        features = {name: clips[rate].features[name] for name, rate in rate_of.items()}
        return ClipFeatures(features, {name: clips[rate].num_samples[name] for name, rate in rate_of.items()})


def _joined(clip: Sequence[AudioPart], rate_hz: int) -> np.ndarray:
    """Stretches of sound one after another with pauses between them."""
    pause = np.zeros(round(PAUSE_S * rate_hz), dtype=np.float32)
    waves: list[np.ndarray] = []
    for part in clip:
        waves += [load_audio(part.path, rate_hz, start_s=part.start_s, end_s=part.end_s), pause]
    return np.concatenate(waves[:-1])
