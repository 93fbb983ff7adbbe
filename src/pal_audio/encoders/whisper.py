"""`whisper`: Whisper's encoder, from its own or a full Whisper checkpoint, or fresh from an inline config.

The encoder reads a mel image of fixed length and knows no mask: frames that describe padding are dropped from its output,
though attention has seen them. A window is what fills the image (30 s in every published checkpoint).

Shapes: W windows, S samples, M mel bins, F mel frames, T encoder frames, D width.
"""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from pal_audio.encoders.base import FrontEnd, ceil_div
from pal_audio.encoders.transformers_ import HubConfig, HubEncoder, all_states, load_model, wrong_type
from pal_audio.errors import PalError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

MEL_FRAMES_PER_FRAME = 2
"""Stride of the second convolution."""


class WhisperEncoderConfig(HubConfig):
    type: Literal["whisper"] = "whisper"

    @property
    def default_model_type(self) -> str:
        return "whisper"

    @functools.cached_property
    def architecture(self) -> "PreTrainedConfig":
        architecture = super().architecture
        if architecture.model_type != "whisper":
            raise wrong_type(self.type, architecture.model_type)
        return architecture

    @property
    def hop_samples(self) -> int:
        return int(self.extractor_fields.get("hop_length", 160))

    @property
    def window_samples(self) -> int:
        return int(self.architecture.max_source_positions) * MEL_FRAMES_PER_FRAME * self.hop_samples

    def window_frames(self, num_samples: int) -> int:
        return ceil_div(max(num_samples, 1), MEL_FRAMES_PER_FRAME * self.hop_samples)

    def front_end(self) -> "WhisperFrontEnd":
        return WhisperFrontEnd(self)

    def build(self) -> "WhisperEncoder":
        return WhisperEncoder(self)


class WhisperFrontEnd(FrontEnd):
    """Whisper's log-mel image of a window padded with silence."""

    def __init__(self, config: WhisperEncoderConfig) -> None:
        from transformers import WhisperFeatureExtractor

        super().__init__(config.window_samples)
        num_mels = config.architecture.num_mel_bins
        fields = {"feature_size": num_mels} | config.extractor_fields
        if fields["feature_size"] != num_mels:
            raise PalError(
                f"preprocessor: feature_size {fields['feature_size']} does not fit the encoder's num_mel_bins {num_mels}"
            )
        self.extractor = WhisperFeatureExtractor(**fields)

    def features(self, wav_S: np.ndarray) -> Tensor:
        """(M, F) float32, F fixed."""
        padded_S = np.pad(wav_S, (0, self.window_samples - len(wav_S)))
        output = self.extractor(
            padded_S, sampling_rate=self.extractor.sampling_rate, padding="do_not_pad", truncation=False, return_tensors="np"
        )
        return torch.from_numpy(output["input_features"][0]).float()


class WhisperEncoder(HubEncoder):
    """transformers' WhisperEncoder."""

    config: WhisperEncoderConfig

    def __init__(self, config: WhisperEncoderConfig) -> None:
        from transformers.models.whisper.modeling_whisper import WhisperEncoder as HubWhisperEncoder

        super().__init__(config)
        # A full checkpoint says model.encoder.*, one of WhisperModel encoder.*, one of the encoder alone neither.
        self.model = load_model(config, HubWhisperEncoder, key_mapping={r"^(model\.)?encoder\.": ""})
        self._finish()

    def hidden_states(self, features: Tensor, samples_W: Sequence[int]) -> list[Tensor]:
        return all_states(self.model(features.to(self.model.conv1.weight.dtype), output_hidden_states=True))
