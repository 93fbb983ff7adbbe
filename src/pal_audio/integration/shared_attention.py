"""Attention of several rows to audio that is held once for all of them, in a prefill.

    audio, once | row 1's text | row 2's text | ...     one softmax a query, which sees its own row's text alone
    audio, once | row 6's text | ...

Rows stand side by side behind a copy of the audio, so many that their text is short beside it: a copy for each row would be as
much memory as audio of their own, and all rows behind one copy would be the square of their text in scores. SDPA is called
once in any case. Exact, and differentiable. Source: our choice.

Shapes: B rows, R rows side by side, S = B / R rounded up, H query heads, K key/value heads, L queries of a row, T text keys,
A audio keys, d head width.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_AUDIO_PER_TEXT = 4  # text side by side is at most this part of the audio: a quarter more scores


def rows_at_once(rows: int, num_text: int, num_audio: int) -> int:
    """R: how many rows stand behind one copy of the audio."""
    return max(1, min(rows, num_audio // (_AUDIO_PER_TEXT * num_text)))


def shared_mask(text_BLT: Tensor, audio_BLA: Tensor, at_once: int) -> Tensor:
    """What queries of rows that stand side by side see.

    Args:
        text_BLT: (B, L, T) bool: a row's own text.
        audio_BLA: (B, L, A) bool.
        at_once: R.

    Returns:
        (S, 1, R * L, A + R * T) bool.
    """
    _, num_tokens, num_text = text_BLT.shape
    audio, text = (_in_groups(part, at_once) for part in (audio_BLA, text_BLT))
    own = text.new_zeros(len(text), at_once, num_tokens, at_once, num_text)
    own.diagonal(dim1=1, dim2=3).copy_(text.permute(0, 2, 3, 1))
    return torch.cat([audio.flatten(1, 2), own.flatten(3, 4).flatten(1, 2)], dim=-1)[:, None]


def shared_attention(
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
    query: Tensor,
    text: tuple[Tensor, Tensor],
    audio: tuple[Tensor, Tensor],
    at_once: int,
) -> Tensor:
    """Attention over each row's own text and over audio that all rows share.

    Args:
        attend: from queries (S, H, R * L, d), keys and values (S, K, A + R * T, d) to (S, H, R * L, d), under `shared_mask`.
        query: (B, H, L, d).
        text: keys and values (B, K, T, d).
        audio: keys and values (1, K, A, d).
        at_once: R.

    Returns:
        (B, H, L, d).
    """
    rows, _, num_tokens, _ = query.shape

    def side_by_side(heads: Tensor) -> Tensor:
        return _in_groups(heads, at_once).transpose(1, 2).flatten(2, 3)

    def joined(once: Tensor, own: Tensor) -> Tensor:
        own = side_by_side(own)
        return torch.cat([once.to(own.dtype).expand(len(own), -1, -1, -1), own], dim=2)

    output = attend(side_by_side(query), joined(audio[0], text[0]), joined(audio[1], text[1]))
    return output.unflatten(2, (at_once, num_tokens)).transpose(1, 2).flatten(0, 1)[:rows]


def _in_groups(rows: Tensor, at_once: int) -> Tensor:
    """(B, ...) -> (S, R, ...); the last group is filled up with zeros."""
    if missing := -len(rows) % at_once:
        rows = F.pad(rows, [0, 0] * (rows.ndim - 1) + [0, missing])
    return rows.unflatten(0, (-1, at_once))
