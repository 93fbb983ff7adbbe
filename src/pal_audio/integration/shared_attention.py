"""Attention of several rows to audio that is held once for all of them, in a prefill.

    B rows' queries side by side ──► the audio ┐
    each row's queries ──► its own text        ┴ merged by log-sum-exp

Exact, and differentiable in text. Source: our choice.

Shapes: B rows, H query heads, K key/value heads, G = H / K, L queries of a row, M queries of a key head, T text keys,
A audio keys, d head width.
"""

import math

import torch
from torch import Tensor

MAX_SCORES = 2**25  # scores at once, which bounds the memory of a prefill


def shared_attention(
    query: Tensor,
    text: tuple[Tensor, Tensor, Tensor],
    audio: tuple[Tensor, Tensor, Tensor],
    scale: float | None = None,
) -> Tensor:
    """Grouped-query attention over each row's own text and over audio that all rows share, which is not expanded.

    Args:
        query: (B, H, L, d).
        text: keys and values (B, K, T, d), and which are seen, (B, 1, L, T) bool.
        audio: keys and values (1, K, A, d), and which are seen, (B, 1, L, A) bool.
        scale: of the scores; 1 / sqrt(d) if None.

    Returns:
        (B, H, L, d) in the values' dtype; 0 for a query that sees nothing.
    """
    rows, heads, num_tokens, size = query.shape
    key_heads = text[0].shape[1]
    groups = heads // key_heads
    scale = 1 / math.sqrt(size) if scale is None else scale
    grouped = query.reshape(rows, key_heads, groups * num_tokens, size)

    def folded(mask: Tensor) -> Tensor:
        return mask.expand(-1, -1, num_tokens, -1)[:, :, None].expand(-1, -1, groups, -1, -1).flatten(2, 3)

    own, own_lse = partial_attention(grouped, text[0], text[1], folded(text[2]), scale)
    side_by_side = grouped.transpose(0, 1).reshape(1, key_heads, -1, size)
    seen = folded(audio[2]).reshape(1, 1, -1, audio[2].shape[-1])
    joint, joint_lse = partial_attention(side_by_side, audio[0], audio[1], seen, scale)
    joint = joint.view(key_heads, rows, -1, size).transpose(0, 1)
    joint_lse = joint_lse.view(key_heads, rows, -1).transpose(0, 1)
    return merge(own, own_lse, joint, joint_lse).reshape(rows, heads, num_tokens, size).to(text[1].dtype)


def partial_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attention over a part of the keys, with what is needed to merge it with the rest.

    Args:
        query: (B, K, M, d).
        key, value: (B, K, T, d).
        mask: (B, 1, M, T) bool.
        scale: of the scores.

    Returns:
        The output (B, K, M, d) and the logarithm of the sum of exponentiated scores (B, K, M), both float32; 0 and
        -inf where a query sees nothing.
    """
    at_once = max(1, MAX_SCORES // (query.shape[0] * query.shape[1] * key.shape[2]))
    outputs, sums = [], []
    for start in range(0, query.shape[2], at_once):
        part = slice(start, start + at_once)
        scores = (query[:, :, part].to(key.dtype) @ key.transpose(-1, -2)).float().mul_(scale)
        scores.masked_fill_(~mask[:, :, part], -torch.inf)
        highest = scores.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).min)
        weights = scores.sub_(highest).exp_()
        total = weights.sum(-1, keepdim=True)
        weights = weights / total.clamp(min=torch.finfo(torch.float32).tiny)
        outputs.append((weights.to(value.dtype) @ value).float())
        sums.append((highest + total.log())[..., 0])
    return torch.cat(outputs, dim=2), torch.cat(sums, dim=2)


def merge(one: Tensor, one_lse: Tensor, other: Tensor, other_lse: Tensor) -> Tensor:
    """Two partial attentions of the same queries as one: each weighs as the sum of its exponentiated scores."""
    both = torch.logaddexp(one_lse, other_lse).clamp(min=torch.finfo(torch.float32).min)
    return (one_lse - both).exp()[..., None] * one + (other_lse - both).exp()[..., None] * other
