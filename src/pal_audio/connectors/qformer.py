"""`qformer`: learned queries read the whole clip, so every clip gives the same number of tokens.

Shapes: C clips, T encoder frames, A audio tokens (= queries), D width, H heads.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn

from pal_audio.connectors.base import INITIAL_TIME_GAIN, Connector, ConnectorConfig, TokenHead, time_code
from pal_audio.encoders.base import length_mask
from pal_audio.errors import PalError


class QformerConnectorConfig(ConnectorConfig):
    type: Literal["qformer"] = "qformer"
    queries: int = Field(16, gt=0)
    """Audio tokens of every clip."""
    num_layers: int = Field(2, gt=0)
    num_heads: int = Field(4, gt=0)
    hidden_size: int | None = Field(None, gt=0)
    """Width of queries and layers; None: the frame size."""

    def output_lengths(self, num_frames: int, frame_rate_hz: float) -> int:
        return self.queries

    def build(self, frame_size: int, token_size: int, frame_rate_hz: float, init_rms: float) -> "QformerConnector":
        return QformerConnector(self, frame_size, token_size, frame_rate_hz, init_rms)


class Attention(nn.Module):
    """Multi-head attention of queries over a memory; before-norm on the queries' side."""

    def __init__(self, size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(size)
        self.q_proj = nn.Linear(size, size)
        self.kv_proj = nn.Linear(size, 2 * size)
        self.out_proj = nn.Linear(size, size)

    def forward(self, queries_CAD: Tensor, memory_CTD: Tensor | None, mask_CT: Tensor | None) -> Tensor:
        """What to add to the queries. Without a memory they read each other."""
        normed_CAD = self.norm(queries_CAD)
        q = rearrange(self.q_proj(normed_CAD), "c a (h d) -> c h a d", h=self.num_heads)
        kv = self.kv_proj(normed_CAD if memory_CTD is None else memory_CTD)
        k, v = rearrange(kv, "c t (n h d) -> n c h t d", n=2, h=self.num_heads)
        mask = None if mask_CT is None else mask_CT[:, None, None, :]
        return self.out_proj(rearrange(F.scaled_dot_product_attention(q, k, v, attn_mask=mask), "c h a d -> c a (h d)"))


class QformerLayer(nn.Module):
    """Self-attention over the queries, cross-attention to the frames, feed-forward; each residual."""

    def __init__(self, size: int, num_heads: int) -> None:
        super().__init__()
        self.self_attention = Attention(size, num_heads)
        self.cross_attention = Attention(size, num_heads)
        self.mlp = nn.Sequential(nn.LayerNorm(size), nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size))

    def forward(self, queries_CAD: Tensor, memory_CTD: Tensor, mask_CT: Tensor) -> Tensor:
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
        if size % config.num_heads:
            raise PalError(f"qformer: hidden_size {size} is no multiple of num_heads {config.num_heads}")
        self.queries = nn.Parameter(torch.randn(config.queries, size))
        self.frame_projection = nn.Sequential(nn.LayerNorm(frame_size), nn.Linear(frame_size, size), nn.LayerNorm(size))
        self.time_gain = nn.Parameter(torch.tensor(INITIAL_TIME_GAIN)) if config.time_code else None
        self.layers = nn.ModuleList(QformerLayer(size, config.num_heads) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(size)
        self.out = nn.Linear(size, token_size)
        self.head = TokenHead(token_size, init_rms, time_code=False)

    def forward(self, frames_CTD: Tensor, lengths_C: Tensor) -> tuple[Tensor, Tensor]:
        num_clips, num_frames, _ = frames_CTD.shape
        mask_CT = length_mask(lengths_C, num_frames, frames_CTD.device)
        memory_CTD = self.frame_projection(frames_CTD.masked_fill(~mask_CT[:, :, None], 0))
        if self.time_gain is not None:
            times_T = (torch.arange(num_frames, device=frames_CTD.device, dtype=torch.float32) + 0.5) / self.frame_rate_hz
            memory_CTD = memory_CTD + self.time_gain * time_code(times_T, memory_CTD.shape[-1]).to(memory_CTD.dtype)
        queries_CAD = self.queries.expand(num_clips, -1, -1)
        for layer in self.layers:
            queries_CAD = layer(queries_CAD, memory_CTD, mask_CT)
        token_lengths_C = self.token_lengths(lengths_C)
        mask_CA = torch.ones(queries_CAD.shape[:2], dtype=torch.bool, device=frames_CTD.device)
        return self.head(self.out(self.norm(queries_CAD)), mask_CA, mask_CA.float()), token_lengths_C
