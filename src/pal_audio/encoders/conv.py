"""`conv`: a small log-mel network for small data and plain processors, trained from scratch.

Log-mel frames, a few 2-D convolutions that shrink frequency and time early, frequency folded into the width, then layers
over time. No statistic ever runs over time, and every position past a window's length is set to zero before the next
convolution reads it, so a clip gives the same frames alone and in a batch, in training as in evaluation.

Shapes: W windows, S samples, F mel frames, M mel bins, T encoder frames, K channels of an image, D width.
"""

import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field, model_validator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pal_audio.encoders.base import FRAMES_AT_ONCE, AudioEncoder, EncoderConfig, FrontEnd, Samples, ceil_div, length_mask
from pal_audio.errors import PalError

LOG_FLOOR = 1e-9
"""Added to the mel power, relative to a full-scale amplitude of 1: -90 dB."""
MEAN_DB, STD_DB = -60.0, 20.0
"""Centre and spread of the mel power of recordings at usual levels: constants, so that padding changes nothing."""

MAX_CONFIG_BYTES = 2**20
_FIXED = (
    "sampling_rate_hz",
    "num_mels",
    "fft_samples",
    "hop_samples",
    "channels",
    "time_strides",
    "hidden_size",
    "num_layers",
    "num_heads",
)
"""Fields that weights were trained for."""


class ConvEncoderConfig(EncoderConfig):
    type: Literal["conv"] = "conv"
    sampling_rate_hz: int = Field(16_000, gt=0)
    window_s: float = Field(10.0, gt=0)
    num_mels: int = Field(64, gt=0)
    fft_samples: int = Field(512, gt=0)
    hop_samples: int = Field(160, gt=0)
    channels: list[int] = Field([16, 32, 64, 128], min_length=1)
    """Of the convolution blocks; each halves the frequency axis."""
    time_strides: list[int] = Field([2, 2, 1, 1], min_length=1)
    """Of the convolution blocks; their product times the hop is a frame's duration."""
    hidden_size: int = Field(128, gt=0)
    """Width of the frames."""
    num_layers: int = Field(2, ge=0)
    """Layers over time after the convolutions."""
    num_heads: int = Field(4, gt=0)
    dropout: float = Field(0.1, ge=0, lt=1)
    spec_augment: bool = True
    """Mask bands of time and frequency and change the gain, in training mode only."""

    @model_validator(mode="before")
    @classmethod
    def _sizes_of_the_checkpoint(cls, values: Any) -> Any:
        """What a checkpoint's config.json says and the user does not."""
        if not isinstance(values, dict) or not isinstance(values.get("checkpoint"), str):
            return values
        stored = _read_config(Path(values["checkpoint"]))
        for name in _FIXED:
            if name in stored and name in values and values[name] != stored[name]:
                raise PalError(f"checkpoint {values['checkpoint']!r} has {name} {stored[name]}, not {values[name]}; leave it out")
        return stored | values

    @model_validator(mode="after")
    def _check(self) -> "ConvEncoderConfig":
        if len(self.channels) != len(self.time_strides):
            raise PalError(f"channels {self.channels} and time_strides {self.time_strides}: give each block one of both")
        if self.num_mels % 2 ** len(self.channels):
            raise PalError(f"num_mels {self.num_mels} is no multiple of {2 ** len(self.channels)} (every block halves it)")
        if self.hidden_size % self.num_heads:
            raise PalError(f"hidden_size {self.hidden_size} is no multiple of num_heads {self.num_heads}")
        if self.hop_samples > self.fft_samples:
            raise PalError(f"hop_samples {self.hop_samples} exceeds fft_samples {self.fft_samples}: sound would be lost")
        self.layer_indices  # noqa: B018  (raises when encoder_layers is out of range)
        return self

    @property
    def window_samples(self) -> int:
        frame_samples = self.hop_samples * math.prod(self.time_strides)
        return max(round(self.window_s * self.sampling_rate_hz / frame_samples), 1) * frame_samples

    @property
    def num_hidden_layers(self) -> int:
        return self.num_layers

    def mel_frames(self, num_samples: int) -> int:
        """Mel frames of a window."""
        return ceil_div(max(num_samples, 1), self.hop_samples)

    def window_frames(self, num_samples: int) -> int:
        return functools.reduce(ceil_div, self.time_strides, self.mel_frames(num_samples))

    def front_end(self) -> "LogMel":
        return LogMel(self)

    def front_end_for(self, device: torch.device) -> FrontEnd:
        return Samples(self.window_samples) if device.type == "cuda" else self.front_end()

    def build(self) -> "ConvEncoder":
        return ConvEncoder(self)


class LogMel(FrontEnd):
    """Log-mel power in units of `STD_DB` around `MEAN_DB`. Source: our choice; HTK mel scale, triangles over the whole band.

    It computes in float32 and where its tensors are: on the CPU, until `to` moves them.
    """

    def __init__(self, config: ConvEncoderConfig) -> None:
        super().__init__(config.window_samples)
        self.config = config
        hann_S = torch.hann_window(config.fft_samples, dtype=torch.float32)
        self.window_S = hann_S / hann_S.sum()
        self.bank_NM = mel_bank(config.fft_samples, config.num_mels, config.sampling_rate_hz)

    def to(self, device: torch.device) -> "LogMel":
        """Itself, on a device from now on."""
        self.window_S, self.bank_NM = self.window_S.to(device), self.bank_NM.to(device)
        return self

    def features(self, wav_S: np.ndarray) -> Tensor:
        """(F, M) float32: frame f is centred on the middle of its hop, zeros stand around the window."""
        return self.of_windows(torch.from_numpy(wav_S)[None])[0]

    def of_windows(self, wav_WS: Tensor) -> Tensor:
        """(W, F, M) float32, of windows (W, S) float32 that are padded with zeros to one length."""
        config, num_samples = self.config, wav_WS.shape[1]
        num_frames = config.mel_frames(num_samples)
        left = (config.fft_samples - config.hop_samples) // 2
        total = (num_frames - 1) * config.hop_samples + config.fft_samples
        padded_WS = F.pad(wav_WS, (left, total - left - num_samples))
        frames_WFS = padded_WS.unfold(1, config.fft_samples, config.hop_samples)  # half of torch.stft's time with abs()
        with torch.autocast(wav_WS.device.type, enabled=False):
            power_WFM = torch.cat([self._mel_power(some_WFS) for some_WFS in frames_WFS.split(FRAMES_AT_ONCE, dim=1)], dim=1)
        return (10 * torch.log10(power_WFM + LOG_FLOOR) - MEAN_DB) / STD_DB

    def _mel_power(self, frames_WFS: Tensor) -> Tensor:
        """WFM, of frames of samples."""
        spectrum_WFN = torch.fft.rfft(frames_WFS * self.window_S)
        return (spectrum_WFN.real.square() + spectrum_WFN.imag.square()) @ self.bank_NM


def mel_bank(fft_samples: int, num_mels: int, sampling_rate_hz: int) -> Tensor:
    """Triangular filters (fft_samples // 2 + 1, M) with peak 1, equally spaced on the HTK mel scale up to half the rate."""
    top_mel = 2595 * math.log10(1 + sampling_rate_hz / 2 / 700)
    edges_hz = 700 * (10 ** (torch.linspace(0, top_mel, num_mels + 2, dtype=torch.float32) / 2595) - 1)
    bins_hz = torch.linspace(0, sampling_rate_hz / 2, fft_samples // 2 + 1, dtype=torch.float32)
    # A triangle narrower than two bins would catch none: it is widened to them.
    bin_hz = sampling_rate_hz / fft_samples
    low, centre, high = edges_hz[:-2], edges_hz[1:-1], edges_hz[2:]
    rising = (bins_hz[:, None] - centre) / torch.clamp(centre - low, min=bin_hz) + 1
    falling = (centre - bins_hz[:, None]) / torch.clamp(high - centre, min=bin_hz) + 1
    return torch.clamp(torch.minimum(rising, falling), min=0)


class ConvBlock(nn.Module):
    """Convolution 3 x 3 with stride, normalisation over the channels of each position, GELU."""

    def __init__(self, in_channels: int, out_channels: int, time_stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=(time_stride, 2), padding=1)
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, image_WKTM: Tensor) -> Tensor:
        image_WTMK = self.conv(image_WKTM).permute(0, 2, 3, 1)
        return F.gelu(self.norm(image_WTMK)).permute(0, 3, 1, 2)


class ConvLayer(nn.Module):
    """Attention over the window's valid frames and a feed-forward, both before-norm and residual."""

    def __init__(self, config: ConvEncoderConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads, self.dropout = config.num_heads, config.dropout
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, frames_WTD: Tensor, mask_WT: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(self.attention_norm(frames_WTD)), "w t (n h d) -> n w h t d", n=3, h=self.num_heads)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_WT[:, None, None, :])
        frames_WTD = frames_WTD + F.dropout(self.out(rearrange(mixed, "w h t d -> w t (h d)")), self.dropout, self.training)
        return frames_WTD + F.dropout(self.mlp(frames_WTD), self.dropout, self.training)


class ConvEncoder(AudioEncoder):
    """Log-mel frames (W, F, M) to frames, or samples (W, S), which it makes log-mel frames of first. Source: our choice."""

    config: ConvEncoderConfig
    _log_mel: LogMel | None = None  # made where samples first come: a model that is built without memory has no place for it

    def __init__(self, config: ConvEncoderConfig) -> None:
        super().__init__(config)
        sizes = [1, *config.channels]
        self.blocks = nn.ModuleList(ConvBlock(sizes[i], sizes[i + 1], stride) for i, stride in enumerate(config.time_strides))
        folded = config.channels[-1] * (config.num_mels >> len(config.channels))
        self.project = nn.Sequential(nn.Linear(folded, config.hidden_size), nn.LayerNorm(config.hidden_size))
        self.layers = nn.ModuleList(ConvLayer(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.to(memory_format=torch.channels_last)
        if config.checkpoint is not None:
            self.load_state_dict(_read_weights(config.checkpoint, self))
        self._finish()

    def save_checkpoint(self, folder: Path) -> None:
        """model.safetensors and config.json; `spec_augment` is off in it, since a trained encoder is to be read as it is."""
        folder.mkdir(parents=True, exist_ok=True)
        fields = self.config.model_dump(mode="json", exclude={"checkpoint", "frozen", "encoder_layers"}) | {"spec_augment": False}
        (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(weights, folder / "model.safetensors")

    def hidden_states(self, features: Tensor, samples_W: Sequence[int]) -> list[Tensor]:
        lengths = [self.config.mel_frames(num_samples) for num_samples in samples_W]
        lengths_W = torch.tensor(lengths).to(features.device, non_blocking=True)
        mel_WFM = self._mel_of(features, samples_W) if features.ndim == 2 else features
        mel_WFM = mel_WFM[:, : max(lengths)].to(self.norm.weight.dtype)
        if self.training and self.config.spec_augment:
            mel_WFM = spec_augment(mel_WFM, lengths_W)
        image_WKTM = (mel_WFM * length_mask(lengths_W, mel_WFM.shape[1])[:, :, None])[:, None]
        image_WKTM = image_WKTM.contiguous(memory_format=torch.channels_last)
        mask_WT = length_mask(lengths_W, mel_WFM.shape[1])
        for block, stride in zip(self.blocks, self.config.time_strides, strict=True):
            image_WKTM = block(image_WKTM)
            lengths_W = (lengths_W + stride - 1) // stride
            mask_WT = length_mask(lengths_W, image_WKTM.shape[2])
            image_WKTM = image_WKTM * mask_WT[:, None, :, None]
        states = [self.project(rearrange(image_WKTM, "w k t m -> w t (m k)"))]
        for layer in self.layers:
            states.append(layer(states[-1], mask_WT))
        states[-1] = self.norm(states[-1])
        return states

    @torch.no_grad()
    def _mel_of(self, wav_WS: Tensor, samples_W: Sequence[int]) -> Tensor:
        """Log-mel frames WFM of windows of samples; what lies past a window's end is not heard."""
        device = wav_WS.device
        if self._log_mel is None:
            self._log_mel = self.config.front_end()
        heard_WS = wav_WS[:, : max(samples_W)].float()
        return self._log_mel.to(device).of_windows(heard_WS * length_mask(torch.tensor(samples_W), heard_WS.shape[1], device))


def spec_augment(mel_WFM: Tensor, lengths_W: Tensor) -> Tensor:
    """Mask two bands of time (up to 10% of the window each) and of frequency (up to 15%), and change the gain by up to 6 dB.

    Masked cells become 0, the centre of the scale. Random numbers are torch's.

    Source: SpecAugment (arXiv 1904.08779), section 2, without time warping; the gain is our addition.
    """
    num_windows, num_frames, num_mels = mel_WFM.shape
    device = mel_WFM.device
    mel_WFM = mel_WFM + (torch.rand(num_windows, 1, 1, device=device, dtype=mel_WFM.dtype) * 2 - 1) * 6 / STD_DB
    for _ in range(2):
        for size, limit, axis in ((num_frames, lengths_W * 0.1, 1), (num_mels, torch.full_like(lengths_W, num_mels) * 0.15, 2)):
            width_W = torch.rand(num_windows, device=device) * limit
            total_W = lengths_W if axis == 1 else num_mels
            start_W = torch.rand(num_windows, device=device) * (total_W - width_W)
            place = torch.arange(size, device=device)
            band = (place >= start_W[:, None]) & (place < (start_W + width_W)[:, None])
            mel_WFM = mel_WFM.masked_fill(band.unsqueeze(3 - axis), 0)
    return mel_WFM


def _read_config(folder: Path) -> dict[str, Any]:
    """Fields of a checkpoint's config.json; none where it has weights alone."""
    file = folder / "config.json"
    if not file.is_file():
        return {}
    try:
        if file.stat().st_size > MAX_CONFIG_BYTES:
            raise PalError(f"checkpoint {str(folder)!r}: config.json is over the limit of {MAX_CONFIG_BYTES} bytes")
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise PalError(f"checkpoint {str(folder)!r}: config.json cannot be read: {error}") from None
    if not isinstance(fields, dict) or fields.get("type") != "conv" or not fields.keys() <= ConvEncoderConfig.model_fields.keys():
        raise PalError(f"checkpoint {str(folder)!r}: config.json is not of a conv encoder")
    return fields


def _read_weights(checkpoint: str, encoder: nn.Module) -> dict[str, Tensor]:
    """A folder with `model.safetensors`, or such a file, that fits this encoder."""
    path = Path(checkpoint)
    path = path / "model.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise PalError(f"checkpoint {checkpoint!r}: no file {path}; a conv encoder loads a local folder with model.safetensors")
    if path.suffix != ".safetensors":
        raise PalError(f"checkpoint {checkpoint!r}: only .safetensors files are read")
    weights = load_file(path)
    wanted = {name: tuple(value.shape) for name, value in encoder.state_dict().items()}
    for name in sorted(wanted.keys() | weights.keys()):
        found = tuple(weights[name].shape) if name in weights else "nothing"
        if wanted.get(name, "nothing") != found:
            raise PalError(f"checkpoint {checkpoint!r}: {name} is {found}, this config asks for {wanted.get(name, 'nothing')}")
    return weights
