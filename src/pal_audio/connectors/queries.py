"""What connectors of learned queries share: attention, and frames prepared for it, with their time.

Shapes: C clips, T encoder frames, A audio tokens (= queries), D width, H heads.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from pal_audio.connectors.base import clear_padding, time_code
from pal_audio.errors import PalError

HEAD_SIZE = 64  # fused attention kernels are made for heads of 64 and 128


def find_num_heads(connector: str, size: int, num_heads: int | None) -> int:
    """Attention heads of a connector.

    Args:
        connector: its type, for the error.
        size: width of its layers.
        num_heads: those asked for; None: heads of about `HEAD_SIZE`.

    Raises:
        PalError: the width cannot be split among those asked for.
    """
    if num_heads is None:
        wanted = max(1, round(size / HEAD_SIZE))
        return next(number for number in range(wanted, 0, -1) if size % number == 0)
    if size % num_heads:
        raise PalError(f"{connector}: hidden_size {size} is no multiple of num_heads {num_heads}")
    return num_heads


def reads_directly(num_queries: int, num_heads: int, size: int) -> bool:
    """Whether queries read frames as they are: cheaper than keys and values of every frame where queries and heads are few."""
    return num_queries * num_heads < size


class Attention(nn.Module):
    """Multi-head attention of queries over a memory; before-norm on the queries' side.

    Few queries need no keys and values of every frame: what a query asks of keys is asked of frames by q W_k, and W_v is
    applied to the weighted mean of the frames. The same function to rounding. Source: our choice; the products are taken in
    another order, as in the decoding of DeepSeek-V2 (arXiv 2405.04434, section 2.1.2).
    """

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
        if memory_CTD is not None and reads_directly(queries_CAD.shape[1], self.num_heads, queries_CAD.shape[2]):
            return self._read(q, memory_CTD, mask_CT)
        kv = self.kv_proj(normed_CAD if memory_CTD is None else memory_CTD)
        k, v = rearrange(kv, "c t (n h d) -> n c h t d", n=2, h=self.num_heads)
        mask = None if mask_CT is None else mask_CT[:, None, None, :]
        return self.out_proj(rearrange(F.scaled_dot_product_attention(q, k, v, attn_mask=mask), "c h a d -> c a (h d)"))

    def _read(self, q: Tensor, memory_CTD: Tensor, mask_CT: Tensor | None) -> Tensor:
        """The same without keys and values of the memory; q is (C, H, A, d)."""
        clips, heads, _, head_size = q.shape
        w_k, w_v = rearrange(self.kv_proj.weight, "(n h d) m -> n h d m", n=2, h=heads)
        b_k, b_v = rearrange(self.kv_proj.bias, "(n h d) -> n h 1 d", n=2, h=heads)
        q = rearrange(q, "c h a d -> h (c a) d") * head_size**-0.5
        asked = rearrange(q @ w_k, "h (c a) m -> c (h a) m", c=clips)
        same = rearrange((q * b_k).sum(-1, keepdim=True), "h (c a) 1 -> c (h a) 1", c=clips)  # of all frames: softmax drops it
        scores = (asked @ memory_CTD.transpose(1, 2) + same).float()
        if mask_CT is not None:
            scores = scores.masked_fill(~mask_CT[:, None], torch.finfo(torch.float32).min)
        read = scores.softmax(-1).to(memory_CTD.dtype) @ memory_CTD
        value = rearrange(read, "c (h a) m -> h (c a) m", h=heads) @ w_v.transpose(1, 2) + b_v
        return self.out_proj(rearrange(value, "h (c a) d -> c a (h d)", c=clips))


def feed_forward(size: int) -> nn.Sequential:
    """LayerNorm, Linear to four times the width, GELU, Linear back: what to add to the queries."""
    return nn.Sequential(nn.LayerNorm(size), nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size))


class FrameProjection(nn.Sequential):
    """Frames to the width of the queries, with their time: all in one part, as connectors are compiled by parts."""

    def forward(self, frames_CTD: Tensor, times_T: Tensor | None = None, gain: Tensor | None = None) -> Tensor:
        """Projected frames.

        Args:
            frames_CTD: (C, T, frame size).
            times_T: float32, seconds; with `gain`.
            gain: trained factor of the time code, a number; None: no time code.

        Returns:
            (C, T, D).
        """
        memory_CTD: Tensor = super().forward(frames_CTD)
        if gain is not None and times_T is not None:
            memory_CTD = memory_CTD + gain * time_code(times_T, memory_CTD.shape[-1]).to(memory_CTD.dtype)
        return memory_CTD


def frame_projection(frame_size: int, size: int) -> FrameProjection:
    """LayerNorm, Linear, LayerNorm."""
    return FrameProjection(nn.LayerNorm(frame_size), nn.Linear(frame_size, size), nn.LayerNorm(size))


def timed_memory(
    frames_CTD: Tensor, lengths_C: Tensor, projection: nn.Module, gain: Tensor | None, frame_rate_hz: float
) -> tuple[Tensor, Tensor | None]:
    """Frames as queries read them: projected, with the time code of each frame's middle.

    Args:
        frames_CTD: what stands past a clip's length is not read.
        lengths_C: int64 on the CPU.
        projection: see `FrameProjection`.
        gain: trained factor of the time code, a number; None: no time code.
        frame_rate_hz: frames a second.

    Returns:
        memory_CTD and mask_CT, True within a clip's length; None where all clips are as long as the longest.
    """
    frames_CTD, mask_CT = clear_padding(frames_CTD, lengths_C)
    if gain is None:
        return projection(frames_CTD), mask_CT
    times_T = (torch.arange(frames_CTD.shape[1], device=frames_CTD.device, dtype=torch.float32) + 0.5) / frame_rate_hz
    return projection(frames_CTD, times_T, gain), mask_CT
