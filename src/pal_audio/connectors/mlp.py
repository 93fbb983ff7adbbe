"""`mlp`: neighbouring frames are stacked and projected, so a token is local in time.

Shapes: C clips, T encoder frames, A audio tokens, D width.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field
from torch import Tensor

from pal_audio.connectors.base import Connector, ConnectorConfig, TokenHead, clear_padding, projector
from pal_audio.encoders.base import ceil_div, length_mask


class MlpConnectorConfig(ConnectorConfig):
    type: Literal["mlp"] = "mlp"
    stride: int = Field(2, gt=0)
    """Frames stacked to one token."""
    hidden_size: int | None = Field(None, gt=0)
    """Of the projector; None: the token size."""

    def output_lengths(self, num_frames: int, frame_rate_hz: float) -> int:
        return ceil_div(num_frames, self.stride)

    @property
    def is_local(self) -> bool:
        return True

    def begins_token(self, frame: int, frame_rate_hz: float) -> bool:
        return frame % self.stride == 0

    def build(self, frame_size: int, token_size: int, frame_rate_hz: float, init_rms: float) -> "MlpConnector":
        return MlpConnector(self, frame_size, token_size, frame_rate_hz, init_rms)


class MlpConnector(Connector):
    """Stack `stride` frames (the last group is filled with zeros), LayerNorm, Linear, GELU, Linear, `TokenHead`."""

    config: MlpConnectorConfig

    def __init__(
        self,
        config: MlpConnectorConfig,
        frame_size: int,
        token_size: int,
        frame_rate_hz: float,
        init_rms: float = 1.0,
    ) -> None:
        super().__init__(config, frame_size, token_size, frame_rate_hz, init_rms)
        self.projector = projector(frame_size * config.stride, config.hidden_size, token_size)
        self.head = TokenHead(token_size, init_rms, config.time_code)

    def forward(self, frames_CTD: Tensor, lengths_C: Tensor, first_frame: int = 0) -> tuple[Tensor, Tensor]:
        stride = self.config.stride
        frames_CTD, _ = clear_padding(frames_CTD, lengths_C)
        frames_CTD = F.pad(frames_CTD, (0, 0, 0, -frames_CTD.shape[1] % stride))
        tokens_CAD = self.projector(rearrange(frames_CTD, "c (a s) d -> c a (s d)", s=stride))
        token_lengths_C = self.token_lengths(lengths_C, first_frame)
        first, num_tokens = first_frame // stride, tokens_CAD.shape[1]
        places_A = torch.arange(first, first + num_tokens, device=tokens_CAD.device, dtype=torch.float32)
        times_1A = ((places_A + 0.5) * stride / self.frame_rate_hz)[None]
        mask_CA = length_mask(token_lengths_C, tokens_CAD.shape[1], tokens_CAD.device)
        return self.head(tokens_CAD, mask_CA, times_1A), token_lengths_C
