"""`clap`: the audio network of CLAP (LAION's HTSAT), from its own or a full CLAP checkpoint, or fresh from an inline config.

Frames are its last map before it is averaged: in published models 32 time steps of 10 s, each with 2 frequency bands, the
low one first. Long sound is cut into consecutive windows here; transformers' extractor would take a random part of it.

Shapes: W windows, S samples, F mel frames, M mel bins, T encoder frames, D width.

Source: CLAP (arXiv 2211.06687), section 2; HTS-AT (arXiv 2202.00874), section 2.
"""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from einops import rearrange
from pydantic import model_validator
from torch import Tensor

from pal_audio.encoders.base import FrontEnd, ceil_div
from pal_audio.encoders.transformers_ import HubConfig, HubEncoder, load_model, wrong_type
from pal_audio.errors import PalError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

AUDIO_MODEL_TYPE = "clap_audio_model"
PADDINGS = ("repeatpad", "repeat", "pad")
TRUNCATIONS = ("fusion", "rand_trunc")
FUSION_PARTS = ("patch_embed.fusion_model.", "patch_embed.mel_conv2d.")
"""What a fusion checkpoint applies to views of a clip beyond its window: windows have none."""


class ClapEncoderConfig(HubConfig):
    """Its layers, for `encoder_layers`, are those of the last stage: the earlier ones have other widths and rates."""

    type: Literal["clap"] = "clap"

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if self.config is not None:
            self.grid  # noqa: B018  (raises when the sizes do not fit each other)
        return self

    @property
    def default_model_type(self) -> str | None:
        return AUDIO_MODEL_TYPE

    @functools.cached_property
    def architecture(self) -> "PreTrainedConfig":
        architecture = super().architecture
        if architecture.model_type == "clap":
            architecture = architecture.audio_config
        if architecture.model_type != AUDIO_MODEL_TYPE:
            raise wrong_type(self.type, architecture.model_type)
        return architecture

    @functools.cached_property
    def extractor_fields(self) -> dict[str, Any]:
        truncation = "fusion" if self.architecture.enable_fusion else "rand_trunc"
        defaults = {"feature_size": self.architecture.num_mel_bins, "truncation": truncation, "padding": "repeatpad"}
        fields = defaults | {"sampling_rate": 48_000, "hop_length": 480, "max_length_s": 10} | super().extractor_fields
        if fields["feature_size"] != self.architecture.num_mel_bins:
            fits = f"the encoder's num_mel_bins {self.architecture.num_mel_bins}"
            raise PalError(f"preprocessor: feature_size {fields['feature_size']} does not fit {fits}")
        for name, known in (("padding", PADDINGS), ("truncation", TRUNCATIONS)):
            if fields[name] not in known:
                raise PalError(f"preprocessor: {name} {fields[name]!r} is unknown; known are {', '.join(known)}")
        return fields

    @property
    def sampling_rate_hz(self) -> int:
        return int(self.extractor_fields["sampling_rate"])

    @property
    def hidden_size(self) -> int:
        return int(self.architecture.patch_embeds_hidden_size) * 2 ** (len(self.architecture.depths) - 1)

    @property
    def num_hidden_layers(self) -> int:
        return int(self.architecture.depths[-1])

    @functools.cached_property
    def grid(self) -> tuple[int, int, int]:
        """The last stage's map: chunks of time, one above the other; bands of a chunk; time steps of a chunk.

        Raises:
            PalError: the mel image does not fit the network's square.
        """
        arch = self.architecture
        stride = (arch.patch_stride,) * 2 if isinstance(arch.patch_stride, int) else tuple(arch.patch_stride)
        rows, steps = (arch.spec_size // size // 2 ** (len(arch.depths) - 1) for size in stride)
        chunks = arch.spec_size // arch.num_mel_bins
        if arch.spec_size % arch.num_mel_bins or chunks == 0 or rows % chunks or rows < chunks or steps == 0:
            raise PalError(f"config: a square of spec_size {arch.spec_size} cannot be cut by num_mel_bins {arch.num_mel_bins}")
        mel_frames = self.window_samples // int(self.extractor_fields["hop_length"]) + 1
        if mel_frames > arch.spec_size * chunks:
            most = f"the encoder reads {arch.spec_size * chunks}"
            raise PalError(f"preprocessor: max_length_s and hop_length give {mel_frames} mel frames, {most} at most")
        return chunks, rows // chunks, steps

    @property
    def window_samples(self) -> int:
        return int(self.extractor_fields["max_length_s"] * self.sampling_rate_hz)

    def window_frames(self, num_samples: int) -> int:
        # Every time step that begins within the sound is kept, so that no sound is lost at the end.
        chunks, bands, steps = self.grid
        return bands * ceil_div(max(num_samples, 1) * chunks * steps, self.window_samples)

    def front_end(self) -> "ClapFrontEnd":
        return ClapFrontEnd(self)

    def build(self) -> "ClapEncoder":
        return ClapEncoder(self)


class ClapFrontEnd(FrontEnd):
    """Log-mel image of a window, which is repeated or padded as the checkpoint's preprocessor says.

    `truncation` only chooses the mel bank, `fusion` HTK's and `rand_trunc` Slaney's, as in transformers' extractor: nothing is
    truncated here, and nothing drawn.
    """

    def __init__(self, config: ClapEncoderConfig) -> None:
        from transformers import ClapFeatureExtractor

        super().__init__(config.window_samples)
        config.grid  # noqa: B018  (raises when the image does not fit the network)
        self.extractor = ClapFeatureExtractor(**config.extractor_fields)

    def features(self, wav_S: np.ndarray) -> Tensor:
        """(F, M) float32, F fixed."""
        from transformers.audio_utils import spectrogram, window_function

        extractor = self.extractor
        if extractor.padding != "pad":
            repeats = self.window_samples // len(wav_S) + (extractor.padding == "repeat")
            wav_S = np.tile(wav_S, repeats)[: self.window_samples]
        bank = extractor.mel_filters if extractor.truncation == "fusion" else extractor.mel_filters_slaney
        decibel_MF = spectrogram(
            np.pad(wav_S, (0, self.window_samples - len(wav_S))),
            window_function(extractor.fft_window_size, "hann"),
            frame_length=extractor.fft_window_size,
            hop_length=extractor.hop_length,
            power=2.0,
            mel_filters=bank,
            log_mel="dB",
        )
        return torch.from_numpy(np.ascontiguousarray(decibel_MF.T, dtype=np.float32))


class ClapEncoder(HubEncoder):
    """transformers' ClapAudioModel, its map in time order. A fusion checkpoint is told that no window is a part of more."""

    config: ClapEncoderConfig

    def __init__(self, config: ClapEncoderConfig) -> None:
        from transformers import ClapAudioModel

        super().__init__(config)
        config.grid  # noqa: B018  (raises when the image does not fit the network)
        # A full checkpoint says audio_model.audio_encoder.*, one of the audio network alone audio_encoder.*.
        self.model = load_model(config, ClapAudioModel, key_mapping={r"^audio_model\.": ""})
        for name, parameter in self.model.named_parameters():
            # Never read by this use of the model: without a gradient they would stop a data-parallel run.
            if any(part in name for part in FUSION_PARTS):
                parameter.requires_grad_(False)
        self._finish()

    def hidden_states(self, features: Tensor, samples_W: Sequence[int]) -> list[Tensor]:
        blocks = self.model.audio_encoder.layers[-1].blocks
        states: list[Tensor] = []
        # transformers gives what stages return, not what their layers do.
        hooks = [blocks[0].register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))]
        hooks += [block.register_forward_hook(lambda _, __, output: states.append(output[0])) for block in blocks[:-1]]
        try:
            output = self.model(
                features[:, None].to(next(self.model.parameters()).dtype),
                is_longer=torch.zeros(len(features), 1, dtype=torch.bool, device=features.device),
            )
        finally:
            for hook in hooks:
                hook.remove()
        chunks, bands, _ = self.config.grid
        ordered = "w (chunk band step) d -> w (chunk step band) d"
        return [
            *(rearrange(state_WTD, ordered, chunk=chunks, band=bands) for state_WTD in states),
            rearrange(output.last_hidden_state, "w d band step -> w (step band) d"),
        ]
