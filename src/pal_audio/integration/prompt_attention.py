"""Attention of a whole prompt with masks of our own, so that nothing of it is decided by what a mask holds.

    prompt ── PromptStep ─┬─ rows without padding ── causal kernel, no mask
                          └─ padding or windows ──── one mask for all layers of equal windows
                             and audio: `attention.pal_attention`, as in any forward

Shapes: B rows, L tokens of the prompt.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pal_audio.integration.attached import AttachedAudio
from pal_audio.integration.attention import pal_attention


@dataclass
class PromptStep:
    """What the attention of a prompt's layers reads beside queries, keys and values of its text.

    Attributes:
        windows: of each layer's text, in tokens; None = all of it.
        seen_BL: columns that hold text, bool.
        is_full: all do.
        audio: of the prompt; None for text alone.
        called: layers that attended through us.
    """

    windows: tuple[int | None, ...]
    seen_BL: Tensor
    is_full: bool
    audio: AttachedAudio | None
    called: set[int] = field(default_factory=set)
    _masks: dict[int | None, Tensor | None] = field(default_factory=dict)

    def begin(self) -> None:
        """Start a forward: masks are made anew."""
        self.called = set()
        self._masks = {window: self._mask(window) for window in dict.fromkeys(self.windows)}

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
        return pal_attention(module, query, key, value, self._masks[self.windows[layer]], pal_audio=self.audio, **kwargs)
