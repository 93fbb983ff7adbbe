"""Attention of one new token: every key is read where it lies, and once.

    a step of decoding   one query a row ──► [audio as attached | text in buffers of fixed size], one softmax over both

The plain path (`attention`) joins keys into a new tensor in every layer of every step; this does not. Nothing here reads a
number from the device, so that a step can be captured in a CUDA graph. Source: our choice.

Shapes: B rows, H query heads, K key/value heads, G = H / K, T text keys, A audio keys, d head width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.cache_utils import StaticLayer

from pal_audio.integration.flamingo import BlockKey, FlamingoBlock


class TextLayer(StaticLayer):
    """Text keys and values of one layer in tensors of fixed size and address.

    Unlike transformers' own it never slides (windows are in the mask), and its next column is a tensor that all layers share.
    """

    is_initialized: bool

    def __init__(self, max_length: int, column_1: Tensor) -> None:
        super().__init__(max_cache_len=max_length)
        self.column_1 = column_1
        self.prefilling = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keep new keys and values. A prefill attends to what it was given, a step to the whole buffer."""
        if self.prefilling:
            if not self.is_initialized:
                self.keys, self.values = (
                    states.new_zeros(*states.shape[:2], self.max_cache_len, states.shape[3])
                    for states in (key_states, value_states)
                )
                self.is_initialized = True
            self.keys[:, :, : key_states.shape[2]] = key_states
            self.values[:, :, : value_states.shape[2]] = value_states
            return key_states, value_states
        self.keys.index_copy_(2, self.column_1, key_states)
        self.values.index_copy_(2, self.column_1, value_states)
        return self.keys, self.values

    def get_seq_length(self, *args: Any, **kwargs: Any) -> int:
        """0: a prefill begins at the first column, and a step brings its own mask and positions."""
        return 0

    def get_mask_sizes(self, query_length: int, *args: Any, **kwargs: Any) -> tuple[int, int]:
        return query_length, 0


def text_cache(num_layers: int, max_length: int, column_1: Tensor) -> Cache:
    """A text cache of `TextLayer`s."""
    return Cache(layers=[TextLayer(max_length, column_1) for _ in range(num_layers)])


@dataclass
class Keys:
    """Keys and values of one tensor, and which of them a step's token sees.

    Attributes:
        keys, values: (B, K, T, d), or (1, K, T, d) for all rows.
        seen_BT: bool.
        tables: cos and sin (B or 1, T, d) where keys are un-rotated, which only `decode_kernel` takes; else None.
    """

    keys: Tensor
    values: Tensor
    seen_BT: Tensor
    tables: tuple[Tensor, Tensor] | None = None


@dataclass
class DecodingStep:
    """What the attention of one step reads beside queries: which keys are seen, and audio. Tensors keep their addresses.

    Attributes:
        windows: of each layer's text, in tokens; None = all of it.
        column_1: slot of the step's token in the text cache, int64.
        seen_BT: slots that hold text, bool.
        attention: `one_query_attention` here or in `decode_kernel`.
        audio: of each LAL layer; what follows a prompt sees the same keys for ever.
        blocks, block_audio, block_hears: Flamingo blocks, their keys and values, and (B, 1, 1, A) bool.
        called: layers that attended through us.
        consumed, entered: see `attention.AudioContext` and `flamingo.BlockContext`.
    """

    windows: tuple[int | None, ...]
    column_1: Tensor
    seen_BT: Tensor
    attention: Callable[[Tensor, Keys, Keys | None, float], Tensor]
    audio: dict[int, Keys] = field(default_factory=dict)
    blocks: dict[BlockKey, FlamingoBlock] = field(default_factory=dict)
    block_audio: dict[BlockKey, tuple[Tensor, Tensor]] = field(default_factory=dict)
    block_hears: dict[BlockKey, Tensor] = field(default_factory=dict)
    called: set[int] = field(default_factory=set)
    consumed: set[int] = field(default_factory=set)
    entered: set[BlockKey] = field(default_factory=set)

    @property
    def expected(self) -> frozenset[int]:
        return frozenset(self.audio)

    def begin(self) -> None:
        """Start a step."""
        self.called, self.consumed, self.entered = set(), set(), set()

    def block_keys_values(self, key: BlockKey) -> tuple[Tensor, Tensor]:
        return self.block_audio[key]

    def block_visible(self, key: BlockKey) -> Tensor:
        return self.block_hears[key]

    def text_mask(self, layer: int) -> Tensor:
        """(B, T) bool: which text the step's token sees in a layer. Windows count slots, as transformers does."""
        window = self.windows[layer]
        if window is None:
            return self.seen_BT
        at = torch.arange(self.seen_BT.shape[1], device=self.seen_BT.device)
        return self.seen_BT & (at > self.column_1 - window)

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float | None = None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        """The attention function of transformers for a step: (B, H, 1, d) queries -> (B, 1, H, d)."""
        layer: int = module.layer_idx  # type: ignore[assignment]
        self.called.add(layer)
        audio = self.audio.get(layer)
        if audio is not None:
            self.consumed.add(layer)
        scale = 1 / math.sqrt(query.shape[-1]) if scaling is None else scaling
        text = Keys(key, value, self.text_mask(layer))
        return self.attention(query[:, :, 0].to(value.dtype), text, audio, scale)[:, None], None


def one_query_attention(query_BHd: Tensor, text: Keys, audio: Keys | None, scale: float) -> Tensor:
    """One softmax over text and, if there is any, audio, which lie in different tensors, for one query a row and head.

    Args:
        query_BHd: queries.
        text: of each row.
        audio: of each row or of all rows, rotated.
        scale: of the scores.

    Returns:
        (B, H, d) in the values' dtype.
    """
    rows, heads, size = query_BHd.shape
    parts = [text] if audio is None else [audio, text]
    key_heads = text.keys.shape[1]
    grouped = query_BHd.reshape(rows, key_heads, heads // key_heads, size)
    scores = []
    for part in parts:
        assert part.tables is None
        one = _per_key_head(grouped.to(part.keys.dtype), part.keys) @ part.keys.transpose(-1, -2)
        one = _per_row(one, rows, part.keys).float() * scale
        # Not -inf: a column of padding that is fed alone sees nothing, and NaN would reach the row's text through the cache.
        scores.append(one.masked_fill(~part.seen_BT[:, None, None, :], torch.finfo(torch.float32).min))
    weights = torch.cat(scores, dim=-1).softmax(-1).split([part.keys.shape[2] for part in parts], dim=-1)
    output = torch.zeros_like(grouped, dtype=torch.float32)
    for part, weight in zip(parts, weights, strict=True):
        mixed = _per_key_head(weight.to(part.values.dtype), part.values) @ part.values
        output = output + _per_row(mixed, rows, part.values).float()
    return output.reshape(rows, heads, size).to(text.values.dtype)


def _per_key_head(grouped_BKGd: Tensor, keys: Tensor) -> Tensor:
    """Queries as the keys want them: all rows' side by side, (1, K, B * G, d), where there is one set of keys for all rows."""
    if keys.shape[0] == grouped_BKGd.shape[0]:
        return grouped_BKGd
    return grouped_BKGd.transpose(0, 1).flatten(1, 2)[None]


def _per_row(result: Tensor, rows: int, keys: Tensor) -> Tensor:
    """`_per_key_head` undone."""
    if keys.shape[0] == rows:
        return result
    return result[0].unflatten(1, (rows, -1)).transpose(0, 1)
