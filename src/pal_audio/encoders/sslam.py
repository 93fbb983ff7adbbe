"""`sslam`: the base encoder of EAT and SSLAM, from the published safetensors of either, or fresh.

A window becomes a log-mel image of fixed length, the image patches of 16 x 16; a time step of 160 ms gives 8 frames, one a
frequency band, low to high. No mask is used: frames that describe padding are dropped, though attention has seen them.

Shapes: W windows, S samples, F mel frames, M mel bins, N tokens (patches in time order, before them one CLS), D width.

Source: EAT (arXiv 2401.03497), sections 3.1 and 3.2, and SSLAM (arXiv 2506.12222), with the choices of the published code.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as nnf
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor, nn

from pal_audio.encoders import sslam_weights
from pal_audio.encoders.base import AudioEncoder, EncoderConfig, FrontEnd, ceil_div
from pal_audio.encoders.kaldi import FRAME_SAMPLES, HOP_SAMPLES, SAMPLING_RATE_HZ, LogMelBank, num_mel_frames
from pal_audio.errors import PalError

NORM_EPS = 1e-6
INIT_STD = 0.02


class SslamEncoderConfig(EncoderConfig):
    """Defaults are those of the published base models; a folder written by `save_checkpoint` brings its own."""

    type: Literal["sslam"] = "sslam"
    image_frames: int = Field(1024, gt=0)
    """Mel frames of a window's image, 10 ms each; shorter sound is padded. The published models saw 10 s in 1024."""
    num_mels: int = Field(128, gt=0)
    patch_size: int = Field(16, gt=0)
    hidden_size: int = Field(768, gt=0)
    """Width of the frames."""
    num_layers: int = Field(12, gt=0)
    num_heads: int = Field(12, gt=0)
    intermediate_size: int = Field(3072, gt=0)
    position_steps: int = Field(768, gt=0)
    """Time steps of the stored table of positions."""
    mel_mean: float = -4.268
    """Of log-mel values in the training data; the published one is AudioSet's."""
    mel_std: float = Field(4.569, gt=0)
    """Likewise; values are divided by twice this."""
    num_classes: int = Field(0, ge=0)
    """Classes of the fine-tuned head, 527 for AudioSet: `class_probabilities`. 0: no head; one in the file is not read."""

    @model_validator(mode="before")
    @classmethod
    def _sizes_of_the_checkpoint(cls, values: Any) -> Any:
        """What the config.json of a folder of ours says and the user does not."""
        if not isinstance(values, dict) or not isinstance(values.get("checkpoint"), str):
            return values
        stored = sslam_weights.read_config(values["checkpoint"], set(cls.model_fields))
        for name in stored.keys() & values.keys() - {"type", "image_frames", "num_classes"}:
            if values[name] != stored[name]:
                raise PalError(f"checkpoint {values['checkpoint']!r} has {name} {stored[name]}, not {values[name]}; leave it out")
        return stored | values

    @model_validator(mode="after")
    def _check(self) -> "SslamEncoderConfig":
        most = self.position_steps * self.patch_size
        if self.image_frames % self.patch_size or self.image_frames > most:
            raise PalError(f"image_frames {self.image_frames} is no multiple of {self.patch_size} up to {most}")
        if self.num_mels % self.patch_size:
            raise PalError(f"num_mels {self.num_mels} is no multiple of patch_size {self.patch_size}")
        if self.hidden_size % self.num_heads or self.hidden_size % 4:
            raise PalError(f"hidden_size {self.hidden_size} is no multiple of both num_heads {self.num_heads} and 4")
        if self.image_frames * HOP_SAMPLES < FRAME_SAMPLES:
            raise PalError(f"image_frames {self.image_frames} hold less than one frame of {FRAME_SAMPLES} samples")
        self.layer_indices  # noqa: B018  (raises when encoder_layers is out of range)
        return self

    @property
    def sampling_rate_hz(self) -> int:
        return SAMPLING_RATE_HZ

    @property
    def num_hidden_layers(self) -> int:
        return self.num_layers

    @property
    def num_bands(self) -> int:
        """Frames of one time step."""
        return self.num_mels // self.patch_size

    @property
    def window_samples(self) -> int:
        return self.image_frames * HOP_SAMPLES

    def window_frames(self, num_samples: int) -> int:
        # Every time step whose patch begins within the sound is kept, so that no sound is lost at the end.
        return ceil_div(num_mel_frames(num_samples), self.patch_size) * self.num_bands

    def front_end(self) -> "SslamFrontEnd":
        return SslamFrontEnd(self)

    def build(self) -> "SslamEncoder":
        return SslamEncoder(self)


class SslamFrontEnd(FrontEnd):
    """Kaldi's log-mel image. The image is padded, not the sound: log-mel 0 stands after the last frame, as in training."""

    def __init__(self, config: SslamEncoderConfig) -> None:
        super().__init__(config.window_samples)
        self.config = config
        self.log_mel = LogMelBank(config.num_mels)

    def features(self, wav_S: np.ndarray) -> Tensor:
        """(F, M) float32, F fixed."""
        log_mel_FM = self.log_mel(torch.from_numpy(wav_S) - float(wav_S.mean()))
        padded_FM = nnf.pad(log_mel_FM, (0, 0, 0, self.config.image_frames - len(log_mel_FM)))
        return (padded_FM - self.config.mel_mean) / (2 * self.config.mel_std)


class Attention(nn.Module):
    """Softmax attention of every token to every token."""

    def __init__(self, config: SslamEncoderConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x_WND: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(x_WND), "w n (three h d) -> three w h n d", three=3, h=self.num_heads)
        return self.proj(rearrange(nnf.scaled_dot_product_attention(q, k, v), "w h n d -> w n (h d)"))


class FeedForward(nn.Module):
    """Two linear maps around an exact GELU."""

    def __init__(self, config: SslamEncoderConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x_WND: Tensor) -> Tensor:
        return self.fc2(nnf.gelu(self.fc1(x_WND)))


class Block(nn.Module):
    """A post-norm layer: each norm stands after its sum, and what it gives is the next residual."""

    def __init__(self, config: SslamEncoderConfig) -> None:
        super().__init__()
        self.attn = Attention(config)
        self.norm1 = nn.LayerNorm(config.hidden_size, NORM_EPS)
        self.mlp = FeedForward(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, NORM_EPS)

    def forward(self, x_WND: Tensor) -> Tensor:
        x_WND = self.norm1(x_WND + self.attn(x_WND))
        return self.norm2(x_WND + self.mlp(x_WND))


class PatchEmbedding(nn.Module):
    """Patches of the image, all bands of time step 0 first."""

    def __init__(self, config: SslamEncoderConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, config.hidden_size, config.patch_size, config.patch_size)

    def forward(self, image_WFM: Tensor) -> Tensor:
        return rearrange(self.proj(image_WFM[:, None]), "w d step band -> w (step band) d")


class Positions(nn.Module):
    """A fixed table, stored with the weights and never trained."""

    positions: Tensor

    def __init__(self, config: SslamEncoderConfig) -> None:
        super().__init__()
        self.register_buffer("positions", position_table(config.position_steps, config.num_bands, config.hidden_size))


class SslamModel(nn.Module):
    """The network; its names are those of the safetensors files, less the leading `model.`."""

    def __init__(self, config: SslamEncoderConfig) -> None:
        super().__init__()
        self.extra_tokens = nn.Parameter(INIT_STD * torch.randn(1, 1, config.hidden_size))
        self.local_encoder = PatchEmbedding(config)
        self.fixed_positional_encoder = Positions(config)
        self.pre_norm = nn.LayerNorm(config.hidden_size, NORM_EPS)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        if config.num_classes:
            self.fc_norm = nn.LayerNorm(config.hidden_size, NORM_EPS)
            self.head = nn.Linear(config.hidden_size, config.num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
                nn.init.zeros_(module.bias)

    def forward(self, image_WFM: Tensor) -> list[Tensor]:
        """What enters the first layer and every layer's output, WND with CLS first. No norm stands after the last layer."""
        patches_WND = self.local_encoder(image_WFM)
        patches_WND = patches_WND + self.fixed_positional_encoder.positions[:, : patches_WND.shape[1]]
        states = [self.pre_norm(torch.cat([self.extra_tokens.expand(len(image_WFM), -1, -1), patches_WND], dim=1))]
        for block in self.blocks:
            states.append(block(states[-1]))
        return states


class SslamEncoder(AudioEncoder):
    """The student network of EAT or SSLAM without its decoder."""

    config: SslamEncoderConfig

    def __init__(self, config: SslamEncoderConfig) -> None:
        super().__init__(config)
        self.model = SslamModel(config)
        if config.checkpoint is not None:
            self.model.load_state_dict(sslam_weights.read_weights(config.checkpoint, self.model.state_dict()))
        for name, parameter in self.model.named_parameters():
            # Frames do not pass the head: without a gradient it would stop a data-parallel run.
            if name.startswith(sslam_weights.HEAD):
                parameter.requires_grad_(False)
        self._finish()

    def save_checkpoint(self, folder: Path) -> None:
        fields = self.config.model_dump(mode="json", exclude={"checkpoint", "frozen", "encoder_layers"})
        sslam_weights.write(folder, fields, self.state_dict())

    def hidden_states(self, features: Tensor, samples_W: Sequence[int]) -> list[Tensor]:
        return [state_WND[:, 1:] for state_WND in self.model(features.to(self.model.extra_tokens.dtype))]

    def class_probabilities(self, features: Tensor) -> Tensor:
        """Probability of each class in each window, from CLS by the fine-tuned head.

        Args:
            features: (W, F, M) as the front end gives them.

        Returns:
            (W, num_classes), each between 0 and 1; they do not sum to 1, a window may hold several classes.

        Raises:
            ValueError: `num_classes` is 0.
        """
        if not self.config.num_classes:
            raise ValueError("this encoder has no head: set num_classes (527 for AudioSet) and a fine-tuned checkpoint")
        cls_WD = self.model(features.to(self.model.extra_tokens.dtype))[-1][:, 0]
        return torch.sigmoid(self.model.head(self.model.fc_norm(cls_WD)))


def position_table(num_steps: int, num_bands: int, width: int) -> Tensor:
    """(1, num_steps * num_bands, width), time-major: sine and cosine of the band in the first half, of the step in the second."""
    quarter = width // 4
    rates = 10_000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    steps, bands = torch.meshgrid(
        torch.arange(num_steps, dtype=torch.float64), torch.arange(num_bands, dtype=torch.float64), indexing="ij"
    )
    angles = [place.reshape(-1, 1) * rates for place in (bands, steps)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)[None].float()
