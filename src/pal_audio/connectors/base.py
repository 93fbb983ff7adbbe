"""What every connector shares: its configuration, the head in which it ends, and the time code.

Shapes: C clips, T encoder frames, A audio tokens, D width.
"""

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from pal_audio.config import StrictConfig
from pal_audio.encoders.base import length_mask

SHORTEST_PERIOD_S, LONGEST_PERIOD_S = 0.1, 10_000.0
INITIAL_TIME_GAIN = 0.25
"""The code starts well below the content (RMS 1), so that it does not drown it before anything is trained."""


class AnyConnectorConfig(StrictConfig, ABC):
    """What the user chooses of a connector, however many encoders it reads."""

    num_encoders: ClassVar[int] = 1
    """Encoders that it reads; of several see `connectors.joint`."""

    type: str
    time_code: bool = True
    """Add a token's absolute time in seconds: encoders restart their own positions in every window."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Chance that a channel of a clip's frames is zero throughout, in training only; see `drop_channels`."""

    @property
    def is_local(self) -> bool:
        """Tokens depend on frames near them alone, so that a clip may go on behind its last token; see `begins_token`."""
        return False

    def begins_token(self, frame: int, frame_rate_hz: float) -> bool:
        """Whether frame number `frame` > 0 opens a token, so that sound can be cut before it. Asked of local connectors."""
        return False


class ConnectorConfig(AnyConnectorConfig):
    """Of a connector that reads one encoder."""

    @abstractmethod
    def output_lengths(self, num_frames: int, frame_rate_hz: float) -> int:
        """Audio tokens for a clip of `num_frames` >= 1 frames; at least 1. The connector's one length formula."""

    @abstractmethod
    def build(self, frame_size: int, token_size: int, frame_rate_hz: float, init_rms: float) -> "Connector": ...


class Connector(nn.Module, ABC):
    """Frames of an encoder to audio tokens for one integration.

    Args:
        config: of the member.
        frame_size: width of the frames.
        token_size: width of the audio tokens, the LLM's embedding size.
        frame_rate_hz: frames a second, for the time code.
        init_rms: RMS of a token's values at the start of training.
    """

    def __init__(
        self, config: ConnectorConfig, frame_size: int, token_size: int, frame_rate_hz: float, init_rms: float = 1.0
    ) -> None:
        super().__init__()
        self.config = config
        self.frame_size = frame_size
        self.token_size = token_size
        self.frame_rate_hz = frame_rate_hz

    def output_lengths(self, num_frames: int) -> int:
        """Audio tokens for a clip of `num_frames` frames."""
        return self.config.output_lengths(num_frames, self.frame_rate_hz)

    def token_lengths(self, lengths_C: Tensor, first_frame: int = 0) -> Tensor:
        """`output_lengths` of every clip, (C,) int64 on the same device; of its tokens from `first_frame` on."""
        before = self.output_lengths(first_frame) if first_frame else 0
        lengths = [self.output_lengths(first_frame + num_frames) - before for num_frames in lengths_C.tolist()]
        return torch.tensor(lengths, dtype=torch.int64, device=lengths_C.device)

    @abstractmethod
    def forward(self, frames_CTD: Tensor, lengths_C: Tensor) -> tuple[Tensor, Tensor]:
        """Compress and project.

        Args:
            frames_CTD: encoder frames, float; what stands past a clip's length is never read.
            lengths_C: int64 on the CPU, frames of each clip, at least 1.

        A local connector (`ConnectorConfig.is_local`) also takes `first_frame`: the number of the first frame given, where it
        opens a token; tokens and times are those of the whole clip from there on.

        Returns:
            tokens_CAD in time order, zero past each clip's length, and token_lengths_C, int64 on the CPU.
        """


class TokenHead(nn.Module):
    """The end of every connector: tokens of a known size, with their time.

    RMS-normalise, add the time code times a trained gain, multiply by a trained scale per channel. Source: our choice.

    Args:
        token_size: width of the tokens.
        init_rms: start of the scale, the RMS of a token's values (PLITS: that of the LLM's embeddings; LAL: 1).
        time_code: whether tokens have a time.
    """

    def __init__(self, token_size: int, init_rms: float, time_code: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((token_size,), float(init_rms)))
        self.time_gain = nn.Parameter(torch.tensor(INITIAL_TIME_GAIN)) if time_code else None

    def forward(self, tokens_CAD: Tensor, mask_CA: Tensor, times_CA: Tensor) -> Tensor:
        """Finish the tokens.

        Args:
            tokens_CAD: any scale.
            mask_CA: bool, True = valid.
            times_CA: float32, absolute time of each token's middle in seconds; one row where it is the same for all clips.

        Returns:
            tokens_CAD, zero where the mask is False.
        """
        tokens_CAD = nn.functional.rms_norm(tokens_CAD, tokens_CAD.shape[-1:], eps=1e-6)
        if self.time_gain is not None:
            tokens_CAD = tokens_CAD + self.time_gain * time_code(times_CA, tokens_CAD.shape[-1]).to(tokens_CAD.dtype)
        return (tokens_CAD * self.scale) * mask_CA[:, :, None]


def clear_padding(frames_CTD: Tensor, lengths_C: Tensor) -> tuple[Tensor, Tensor | None]:
    """Frames with zeros past each clip's length, and mask_CT, True within it; None where no clip is padded.

    Args:
        frames_CTD: what stands past a clip's length is not read.
        lengths_C: int64 on the CPU.
    """
    num_frames = frames_CTD.shape[1]
    if all(length == num_frames for length in lengths_C.tolist()):
        return frames_CTD, None
    mask_CT = length_mask(lengths_C, num_frames, frames_CTD.device)
    return frames_CTD.masked_fill(~mask_CT[:, :, None], 0), mask_CT


def drop_channels(frames_CTD: Tensor, chance: float, training: bool) -> Tensor:
    """Frames with some channels of each clip at zero from its first frame to its last, the others scaled by 1 / (1 - chance).

    A frozen encoder knows the recordings that it was trained on; without some of its channels an arm has to use them all.
    Source: SpatialDropout (arXiv 1411.4280), before the connector (our choice).
    """
    if not training or chance == 0:
        return frames_CTD
    return nn.functional.dropout1d(frames_CTD.transpose(1, 2), chance).transpose(1, 2)


def time_code(times: Tensor, size: int) -> Tensor:
    """Sinusoids of absolute time: sines of periods from 0.1 s to 10,000 s in geometric steps, then their cosines.

    Always computed in float32: bfloat16 could not tell one second from the next after a few minutes.

    Args:
        times: (...) seconds, float32.
        size: width of the code; of an odd one the last cosine is dropped.

    Returns:
        (..., size) float32 in [-1, 1].

    Source: Attention Is All You Need (arXiv 1706.03762), section 3.5, with periods in seconds (our choice).
    """
    code: Tensor = _sinusoids(times.float(), size)
    return code


# One operator for torch.compile: written out, every sine would be computed again for each clip and channel that it is added to.
@torch.library.custom_op("pal_audio::time_code", mutates_args=())
def _sinusoids(times: Tensor, size: int) -> Tensor:
    num_periods = (size + 1) // 2
    periods_s = torch.logspace(
        math.log10(SHORTEST_PERIOD_S), math.log10(LONGEST_PERIOD_S), num_periods, dtype=torch.float32, device=times.device
    )
    # Whole turns are dropped before the angle is formed: float32 keeps the phase of fast periods late in a long clip.
    phase = 2 * math.pi * torch.remainder(times[..., None] / periods_s, 1.0)
    code = torch.cat([torch.sin(phase), torch.cos(phase)], dim=-1)
    return code if size == 2 * num_periods else code[..., :size].contiguous()


@_sinusoids.register_fake
def _like_sinusoids(times: Tensor, size: int) -> Tensor:
    return times.new_empty((*times.shape, size), dtype=torch.float32)


def projector(in_size: int, hidden_size: int | None, token_size: int) -> nn.Sequential:
    """LayerNorm, Linear, GELU, Linear; `hidden_size` None means `token_size`."""
    hidden_size = hidden_size or token_size
    return nn.Sequential(nn.LayerNorm(in_size), nn.Linear(in_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, token_size))
