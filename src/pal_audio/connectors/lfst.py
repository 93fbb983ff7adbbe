"""`lfst`: learned queries read two encoders in turn, a language-aligned one and one that is fine-grained in time and frequency.

Shapes: C clips, T encoder frames, A audio tokens (= queries), D width.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pal_audio.connectors.base import INITIAL_TIME_GAIN, TokenHead
from pal_audio.connectors.joint import JointConnector, JointConnectorConfig
from pal_audio.connectors.queries import Attention, feed_forward, find_num_heads, frame_projection, timed_memory


class LfstConnectorConfig(JointConnectorConfig):
    num_encoders: ClassVar[int] = 2

    type: Literal["lfst"] = "lfst"
    queries: int = Field(64, gt=0)
    """Audio tokens of every clip."""
    num_layers: int = Field(2, gt=0)
    """In each the queries read both encoders."""
    num_heads: int | None = Field(None, gt=0)
    """None: heads of about 64 channels."""
    hidden_size: int | None = Field(None, gt=0)
    """Width of queries and layers; None: the width of the wider frames."""

    def output_lengths(self, num_frames: Sequence[int], frame_rates_hz: Sequence[float]) -> int:
        return self.queries

    def build(
        self, frame_sizes: Sequence[int], token_size: int, frame_rates_hz: Sequence[float], init_rms: float
    ) -> "LfstConnector":
        return LfstConnector(self, frame_sizes, token_size, frame_rates_hz, init_rms)


class LfstLayer(nn.Module):
    """For each encoder: cross-attention to its frames, then feed-forward; each residual."""

    def __init__(self, size: int, num_heads: int, num_encoders: int) -> None:
        super().__init__()
        self.cross_attentions = nn.ModuleList(Attention(size, num_heads) for _ in range(num_encoders))
        self.mlps = nn.ModuleList(feed_forward(size) for _ in range(num_encoders))

    def forward(self, queries_CAD: Tensor, memories: Sequence[Tensor], masks: Sequence[Tensor | None]) -> Tensor:
        for attention, mlp, memory_CTD, mask_CT in zip(self.cross_attentions, self.mlps, memories, masks, strict=True):
            queries_CAD = queries_CAD + attention(queries_CAD, memory_CTD, mask_CT)
            queries_CAD = queries_CAD + mlp(queries_CAD)
        return queries_CAD


class LfstConnector(JointConnector):
    """Learned queries; in each layer they read the first encoder, then the second; then Linear and `TokenHead`.

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
        gains = torch.full((len(frame_sizes),), INITIAL_TIME_GAIN)
        self.time_gains = nn.Parameter(gains) if config.time_code else None
        self.layers = nn.ModuleList(LfstLayer(size, num_heads, len(frame_sizes)) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(size)
        self.out = nn.Linear(size, token_size)
        self.head = TokenHead(token_size, init_rms, time_code=False)

    def forward(self, frames: Sequence[Tensor], lengths: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        gains = [None] * len(frames) if self.time_gains is None else list(self.time_gains)
        ways = zip(frames, lengths, self.frame_projections, gains, self.frame_rates_hz, strict=True)
        memories, masks = zip(*(timed_memory(*way) for way in ways), strict=True)
        queries_CAD = self.queries.expand(len(frames[0]), -1, -1)
        for layer in self.layers:
            queries_CAD = layer(queries_CAD, memories, masks)
        mask_CA = torch.ones(queries_CAD.shape[:2], dtype=torch.bool, device=queries_CAD.device)
        return self.head(self.out(self.norm(queries_CAD)), mask_CA, mask_CA.float()), self.token_lengths(lengths)
