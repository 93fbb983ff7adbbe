"""`qformer`: learned queries read the whole clip, so every clip gives the same number of tokens.

Shapes: C clips, T encoder frames, A audio tokens (= queries), D width.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pal_audio.connectors.base import INITIAL_TIME_GAIN, Connector, ConnectorConfig, TokenHead
from pal_audio.connectors.queries import Attention, feed_forward, find_num_heads, frame_projection, timed_memory


class QformerConnectorConfig(ConnectorConfig):
    type: Literal["qformer"] = "qformer"
    queries: int = Field(16, gt=0)
    """Audio tokens of every clip."""
    num_layers: int = Field(2, gt=0)
    num_heads: int | None = Field(None, gt=0)
    """None: heads of about 64 channels."""
    hidden_size: int | None = Field(None, gt=0)
    """Width of queries and layers; None: the frame size."""

    def output_lengths(self, num_frames: int, frame_rate_hz: float) -> int:
        return self.queries

    def build(self, frame_size: int, token_size: int, frame_rate_hz: float, init_rms: float) -> "QformerConnector":
        return QformerConnector(self, frame_size, token_size, frame_rate_hz, init_rms)


class QformerLayer(nn.Module):
    """Self-attention over the queries, cross-attention to the frames, feed-forward; each residual."""

    def __init__(self, size: int, num_heads: int) -> None:
        super().__init__()
        self.self_attention = Attention(size, num_heads)
        self.cross_attention = Attention(size, num_heads)
        self.mlp = feed_forward(size)

    def forward(self, queries_CAD: Tensor, memory_CTD: Tensor, mask_CT: Tensor | None) -> Tensor:
        queries_CAD = queries_CAD + self.self_attention(queries_CAD, None, None)
        queries_CAD = queries_CAD + self.cross_attention(queries_CAD, memory_CTD, mask_CT)
        return queries_CAD + self.mlp(queries_CAD)


class QformerConnector(Connector):
    """Learned queries over frames with their time code, then Linear and `TokenHead` without one: queries have no time.

    Source: BLIP-2 (arXiv 2301.12597), section 3.1, the audio half only: no text enters, and the norms stand before.
    """

    config: QformerConnectorConfig

    def __init__(
        self,
        config: QformerConnectorConfig,
        frame_size: int,
        token_size: int,
        frame_rate_hz: float,
        init_rms: float = 1.0,
    ) -> None:
        super().__init__(config, frame_size, token_size, frame_rate_hz, init_rms)
        size = config.hidden_size or frame_size
        num_heads = find_num_heads(config.type, size, config.num_heads)
        self.queries = nn.Parameter(torch.randn(config.queries, size))
        self.frame_projection = frame_projection(frame_size, size)
        self.time_gain = nn.Parameter(torch.tensor(INITIAL_TIME_GAIN)) if config.time_code else None
        self.layers = nn.ModuleList(QformerLayer(size, num_heads) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(size)
        self.out = nn.Linear(size, token_size)
        self.head = TokenHead(token_size, init_rms, time_code=False)

    def forward(self, frames_CTD: Tensor, lengths_C: Tensor) -> tuple[Tensor, Tensor]:
        memory_CTD, mask_CT = timed_memory(frames_CTD, lengths_C, self.frame_projection, self.time_gain, self.frame_rate_hz)
        queries_CAD = self.queries.expand(len(frames_CTD), -1, -1)
        for layer in self.layers:
            queries_CAD = layer(queries_CAD, memory_CTD, mask_CT)
        token_lengths_C = self.token_lengths(lengths_C)
        mask_CA = torch.ones(queries_CAD.shape[:2], dtype=torch.bool, device=frames_CTD.device)
        return self.head(self.out(self.norm(queries_CAD)), mask_CA, mask_CA.float()), token_lengths_C
