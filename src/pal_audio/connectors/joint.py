"""Connectors that read several encoders at once: frames of different rates, widths and lengths -> one sequence of audio tokens.

Shapes: E encoders, C clips, T encoder frames, A audio tokens, D width.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pal_audio.connectors.base import AnyConnectorConfig


class JointConnectorConfig(AnyConnectorConfig):
    """Of a connector that reads `num_encoders` encoders, in the order in which the stream names them."""

    @abstractmethod
    def output_lengths(self, num_frames: Sequence[int], frame_rates_hz: Sequence[float]) -> int:
        """Audio tokens for a clip of so many frames (each >= 1) of each encoder; at least 1. The one length formula."""

    @abstractmethod
    def build(
        self, frame_sizes: Sequence[int], token_size: int, frame_rates_hz: Sequence[float], init_rms: float
    ) -> "JointConnector": ...


class JointConnector(nn.Module, ABC):
    """Frames of several encoders to audio tokens for one integration.

    Args:
        config: of the member.
        frame_sizes: width of the frames of each encoder.
        token_size: width of the audio tokens, the LLM's embedding size.
        frame_rates_hz: frames a second of each encoder, for the time code.
    """

    def __init__(
        self, config: JointConnectorConfig, frame_sizes: Sequence[int], token_size: int, frame_rates_hz: Sequence[float]
    ) -> None:
        super().__init__()
        self.config = config
        self.frame_sizes = tuple(frame_sizes)
        self.token_size = token_size
        self.frame_rates_hz = tuple(frame_rates_hz)
        assert len(self.frame_sizes) == len(self.frame_rates_hz) == config.num_encoders

    def output_lengths(self, num_frames: Sequence[int]) -> int:
        """Audio tokens for a clip of so many frames of each encoder."""
        return self.config.output_lengths(num_frames, self.frame_rates_hz)

    def token_lengths(self, lengths: Sequence[Tensor]) -> Tensor:
        """`output_lengths` of every clip, (C,) int64 on the CPU; `lengths` are those of each encoder, (C,)."""
        per_clip = zip(*(lengths_C.tolist() for lengths_C in lengths), strict=True)
        return torch.tensor([self.output_lengths(num_frames) for num_frames in per_clip], dtype=torch.int64)

    @abstractmethod
    def forward(self, frames: Sequence[Tensor], lengths: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Compress and project.

        Args:
            frames: CTD of each encoder, of the same clips; what stands past a clip's length is never read.
            lengths: (C,) int64 on the CPU, of each encoder, at least 1.

        Returns:
            tokens_CAD, zero past each clip's length, and token_lengths_C, int64 on the CPU.
        """
