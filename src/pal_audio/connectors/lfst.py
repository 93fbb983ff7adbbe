"""`lfst`: learned queries read two encoders in turn, a language-aligned one and one that is fine-grained in time and frequency.

Shapes: C clips, T encoder frames, A audio tokens (= queries), D width.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pal_audio.connectors.base import TokenHead
from pal_audio.connectors.joint import JointConnector, JointConnectorConfig
from pal_audio.connectors.queries import Attention, feed_forward, find_num_heads, frame_projection, time_gain, timed_memory


class LfstConnectorConfig(JointConnectorConfig):
    num_encoders: ClassVar[int] = 2

    type: Literal["lfst"] = "lfst"
    queries: int = Field(64, gt=0)
    """Audio tokens of every clip."""
    num_layers: int = Field(2, gt=0)
    """Blocks; in each the queries read both encoders."""
    num_heads: int | None = Field(None, gt=0)
    """None: heads of about 64 channels."""
    hidden_size: int | None = Field(None, gt=0)
    """Width of queries and blocks; None: the width of the wider frames."""

    def output_lengths(self, num_frames: Sequence[int], frame_rates_hz: Sequence[float]) -> int:
        return self.queries

    def build(
        self, frame_sizes: Sequence[int], token_size: int, frame_rates_hz: Sequence[float], init_rms: float
    ) -> "LfstConnector":
        return LfstConnector(self, frame_sizes, token_size, frame_rates_hz, init_rms)


class Reading(nn.Module):
    """Cross-attention to the frames of one encoder, then feed-forward; each residual."""

    def __init__(self, size: int, num_heads: int) -> None:
        super().__init__()
        self.cross_attention = Attention(size, num_heads)
        self.mlp = feed_forward(size)

    def forward(self, queries_CAD: Tensor, memory_CTD: Tensor, mask_CT: Tensor | None) -> Tensor:
        queries_CAD = queries_CAD + self.cross_attention(queries_CAD, memory_CTD, mask_CT)
        return queries_CAD + self.mlp(queries_CAD)


class LfstConnector(JointConnector):
    """Learned queries; in each block they read the first encoder, then the second; then Linear and `TokenHead`.

    Each encoder's frames have a projection, a time code of their own rate and a mask of their own, so that encoders of any rates
    and lengths fit together; tokens have no time of their own.

    Source: arXiv 2506.10423v2, which says that learned queries attend to a language-aligned encoder (CLAP) and a fine-grained
    spatio-temporal one (SSLAM) in turn. More of it was not at hand. Our choice are: the order (that of the stream's list), a
    feed-forward network behind each reading, no attention among the queries, norms that stand before, the time codes, all sizes.
    """

    config: LfstConnectorConfig

    def __init__(
        self,
        config: LfstConnectorConfig,
        frame_sizes: Sequence[int],
        token_size: int,
        frame_rates_hz: Sequence[float],
        init_rms: float = 1.0,
    ) -> None:
        super().__init__(config, frame_sizes, token_size, frame_rates_hz)
        size = config.hidden_size or max(frame_sizes)
        num_heads = find_num_heads(config.type, size, config.num_heads)
        self.queries = nn.Parameter(torch.randn(config.queries, size))
        self.frame_projections = nn.ModuleList(frame_projection(frame_size, size) for frame_size in frame_sizes)
        gains = [gain for _ in frame_sizes if (gain := time_gain(config.time_code)) is not None]
        self.time_gains = nn.ParameterList(gains)
        self.blocks = nn.ModuleList(
            nn.ModuleList(Reading(size, num_heads) for _ in frame_sizes) for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(size)
        self.out = nn.Linear(size, token_size)
        self.head = TokenHead(token_size, init_rms, time_code=False)

    def forward(self, frames: Sequence[Tensor], lengths: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        gains = self.time_gains if self.config.time_code else [None] * len(frames)
        ways = zip(frames, lengths, self.frame_projections, gains, self.frame_rates_hz, strict=True)
        memories = [timed_memory(*way) for way in ways]
        queries_CAD = self.queries.expand(len(frames[0]), -1, -1)
        for block in self.blocks:
            for reading, (memory_CTD, mask_CT) in zip(block, memories, strict=True):
                queries_CAD = reading(queries_CAD, memory_CTD, mask_CT)
        mask_CA = torch.ones(queries_CAD.shape[:2], dtype=torch.bool, device=queries_CAD.device)
        return self.head(self.out(self.norm(queries_CAD)), mask_CA, mask_CA.float()), self.token_lengths(lengths)
