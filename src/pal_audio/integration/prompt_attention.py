"""Attention of a whole prompt with masks of our own, so that nothing of it is decided by what a mask holds.

    prompt ── PromptStep ─┬─ rows without padding ── causal kernel, no mask
                          ├─ padding or windows ──── one mask for all layers of equal windows
                          │  and audio: `attention.pal_attention`, as in any forward
                          └─ audio on a GPU ──────── `prompt_kernel`, which joins nothing and reads no mask

Shapes: B rows, L tokens of the prompt, H query heads, K key heads, A audio keys, d head width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pal_audio.integration.attached import AttachedAudio
from pal_audio.integration.attention import pal_attention


@dataclass
class PromptText:
    """Text of one layer, and what of it each of its tokens sees: itself, and text before it.

    Attributes:
        keys, values: (B, K, L, d).
        seen_BL: columns that hold text, bool; None: all do.
        window: how many columns back a token sees, its own included; None: all.
    """

    keys: Tensor
    values: Tensor
    seen_BL: Tensor | None
    window: int | None


@dataclass
class PromptAudio:
    """Audio of one layer, and which text sees it.

    Attributes:
        keys, values: (B, K, A, d), or (1, K, A, d) for all rows.
        positions_BL: of text, int32.
        after_BA: a key is seen by text at positions greater than this, int32.
        least_B: the least of `after_BA`.
        tables: cos and sin (B or 1, A, d) where keys are un-rotated.
    """

    keys: Tensor
    values: Tensor
    positions_BL: Tensor
    after_BA: Tensor
    least_B: Tensor
    tables: tuple[Tensor, Tensor] | None = None


Kernel = Callable[[Tensor, PromptText, PromptAudio, float], Tensor]


@dataclass
class PromptStep:
    """What the attention of a prompt's layers reads beside queries, keys and values of its text.

    Attributes:
        windows: of each layer's text, in tokens; None = all of it.
        seen_BL: columns that hold text, bool.
        is_full: all do.
        audio: of the prompt; None for text alone.
        kernel: `prompt_kernel.prompt_attention` for layers with audio; None: SDPA over joined keys.
        called: layers that attended through us.
    """

    windows: tuple[int | None, ...]
    seen_BL: Tensor
    is_full: bool
    audio: AttachedAudio | None
    kernel: Kernel | None = None
    called: set[int] = field(default_factory=set)
    _masks: dict[int | None, Tensor | None] = field(default_factory=dict)
    _bounds: dict[tuple[int, ...], tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    def begin(self) -> None:
        """Start a forward: masks are made anew."""
        self.called = set()
        self._masks = {window: self._mask(window) for window in dict.fromkeys(self.windows)}
        if self.audio is not None and self.kernel is not None:
            self._bounds = self.audio.bounds()

    def _mask(self, window: int | None) -> Tensor | None:
        """(B, 1, L, L) bool, or None for all text before a token. Padding sees itself, so that no row is without a key."""
        length = self.seen_BL.shape[1]
        if self.is_full and (window is None or window >= length):
            return None
        at = torch.arange(length, device=self.seen_BL.device)
        behind = at[:, None] - at[None, :]
        before = behind >= 0 if window is None else (behind >= 0) & (behind < window)
        return ((before & self.seen_BL[:, None]) | (behind == 0))[:, None]

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """The attention function of transformers for a prompt: (B, H, L, d) queries -> (B, L, H, d)."""
        layer: int = module.layer_idx  # type: ignore[assignment]
        self.called.add(layer)
        if self.audio is not None and self.kernel is not None and layer in self.audio.expected:
            return self._by_kernel(self.kernel, self.audio, layer, query, key, value, **kwargs), None
        return pal_attention(module, query, key, value, self._masks[self.windows[layer]], pal_audio=self.audio, **kwargs)

    def _by_kernel(
        self, kernel: Kernel, audio: AttachedAudio, layer: int, query: Tensor, key: Tensor, value: Tensor,
        scaling: float | None = None, **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        audio.consumed.add(layer)
        keys, values, tables = audio.as_kept(layer)
        heard = PromptAudio(keys.to(value.dtype), values.to(value.dtype), *self._bounds[audio.streams_of_layer[layer]], tables)
        text = PromptText(key.to(value.dtype), value, None if self.is_full else self.seen_BL, self.windows[layer])
        return kernel(query.to(value.dtype), text, heard, 1 / math.sqrt(query.shape[-1]) if scaling is None else scaling)
