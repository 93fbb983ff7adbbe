"""`pool`: a clip's frames are split into consecutive segments and each becomes one token, a compact summary in time order.

Shapes: C clips, T encoder frames, A audio tokens, D width.
"""

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pal_audio.connectors.base import Connector, ConnectorConfig, TokenHead, projector
from pal_audio.encoders.base import length_mask
from pal_audio.errors import PalError
from pal_audio.transfer import send


class PoolConnectorConfig(ConnectorConfig):
    type: Literal["pool"] = "pool"
    num_tokens: int | None = Field(None, gt=0)
    """Equal segments of every clip; a clip with fewer frames gives one token a frame."""
    tokens_per_s: float | None = Field(None, gt=0)
    """Segments of one duration, the same in every clip (local in time); at most one token a frame."""
    kind: Literal["mean", "attention"] = "mean"
    """Plain mean of a segment, or a mean weighted by a trained score of each frame."""
    hidden_size: int | None = Field(None, gt=0)
    """Of the projector; None: the token size."""

    @model_validator(mode="after")
    def _check(self) -> "PoolConnectorConfig":
        if (self.num_tokens is None) == (self.tokens_per_s is None):
            raise PalError("a pool connector takes one of num_tokens and tokens_per_s")
        return self

    def frames_per_token(self, num_frames: int, frame_rate_hz: float) -> float:
        """Frames in a segment, at least 1, not always whole."""
        if self.num_tokens is not None:
            return max(num_frames / self.num_tokens, 1.0)
        assert self.tokens_per_s is not None
        return max(frame_rate_hz / self.tokens_per_s, 1.0)

    def segments(self, frames: Tensor, num_frames: int, frame_rate_hz: float) -> Tensor:
        """The tokens that frames (int64) belong to: over a clip's frames they grow from 0 in steps of 0 or 1."""
        if self.num_tokens is not None:
            return frames * min(self.num_tokens, num_frames) // num_frames
        return (frames.double() / self.frames_per_token(num_frames, frame_rate_hz)).long()

    def output_lengths(self, num_frames: int, frame_rate_hz: float) -> int:
        return int(self.segments(torch.tensor(num_frames - 1), num_frames, frame_rate_hz)) + 1

    @property
    def is_local(self) -> bool:
        return self.tokens_per_s is not None

    def begins_token(self, frame: int, frame_rate_hz: float) -> bool:
        before, at = self.segments(torch.tensor([frame - 1, frame]), frame + 1, frame_rate_hz).tolist()
        return self.is_local and before != at

    def build(self, frame_size: int, token_size: int, frame_rate_hz: float, init_rms: float) -> "PoolConnector":
        return PoolConnector(self, frame_size, token_size, frame_rate_hz, init_rms)


class PoolConnector(Connector):
    """Mean of each segment, LayerNorm, Linear, GELU, Linear, `TokenHead`."""

    config: PoolConnectorConfig

    def __init__(
        self,
        config: PoolConnectorConfig,
        frame_size: int,
        token_size: int,
        frame_rate_hz: float,
        init_rms: float = 1.0,
    ) -> None:
        super().__init__(config, frame_size, token_size, frame_rate_hz, init_rms)
        self.score = nn.Sequential(nn.LayerNorm(frame_size), nn.Linear(frame_size, 1)) if config.kind == "attention" else None
        self.projector = projector(frame_size, config.hidden_size, token_size)
        self.head = TokenHead(token_size, init_rms, config.time_code)

    def forward(self, frames_CTD: Tensor, lengths_C: Tensor, first_frame: int = 0) -> tuple[Tensor, Tensor]:
        lengths, device = lengths_C.tolist(), frames_CTD.device
        mask_CT = length_mask(lengths_C, frames_CTD.shape[1], frames_CTD.device)
        frames_CTD = frames_CTD.masked_fill(~mask_CT[:, :, None], 0)
        token_lengths_C = self.token_lengths(lengths_C, first_frame)
        first = self.output_lengths(first_frame) if first_frame else 0
        num_tokens = int(token_lengths_C.max())
        segments_CT = torch.zeros(mask_CT.shape, dtype=torch.int64)
        for clip, num_frames in enumerate(lengths):
            places = torch.arange(first_frame, first_frame + num_frames)
            segments_CT[clip, :num_frames] = self.config.segments(places, num_frames, self.frame_rate_hz) - first
        segments_CT = send(segments_CT, device)

        weights_CT = self._weights(frames_CTD, mask_CT, segments_CT, num_tokens)
        totals_CA = weights_CT.new_zeros(len(lengths), num_tokens).scatter_add(1, segments_CT, weights_CT)
        weights_CT = (weights_CT / totals_CA.gather(1, segments_CT)).to(frames_CTD.dtype)
        tokens_CAD = frames_CTD.new_zeros(len(lengths), num_tokens, frames_CTD.shape[2])
        tokens_CAD = tokens_CAD.scatter_add(1, segments_CT[:, :, None].expand_as(frames_CTD), frames_CTD * weights_CT[:, :, None])

        durations = [self.config.frames_per_token(num_frames, self.frame_rate_hz) / self.frame_rate_hz for num_frames in lengths]
        durations_C = send(torch.tensor(durations, dtype=torch.float32), device)
        times_CA = (torch.arange(first, first + num_tokens, device=device) + 0.5) * durations_C[:, None]
        mask_CA = length_mask(token_lengths_C, num_tokens, device)
        return self.head(self.projector(tokens_CAD), mask_CA, times_CA), token_lengths_C

    def _weights(self, frames_CTD: Tensor, mask_CT: Tensor, segments_CT: Tensor, num_tokens: int) -> Tensor:
        """Positive weight of each frame, float32, 0 where the mask is False; not normalised."""
        if self.score is None:
            return mask_CT.float()
        scores_CT = self.score(frames_CTD)[:, :, 0].float().masked_fill(~mask_CT, float("-inf"))
        peaks_CA = scores_CT.new_full((len(scores_CT), num_tokens), float("-inf"))
        peaks_CA = peaks_CA.scatter_reduce(1, segments_CT, scores_CT.detach(), "amax")
        return torch.exp(scores_CT - peaks_CA.gather(1, segments_CT))
