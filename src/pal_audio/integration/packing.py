"""Packing: the rows of a batch go through the LLM as one row without padding, and no row sees another.

    padded (B, L) ──pack──► (1, T) ── embeddings, norms, projections, FFN, logits: token by token, no padding ──►
                                └── attention: rows are laid out padded again, with the masks of an unpacked batch

Attention is the only place where tokens meet, so isolation there is isolation everywhere, for every integration: what a token
sees is exactly what it sees in the unpacked batch. Source: our choice.

Shapes: B rows, L the longest row, T tokens of all rows, H heads, d head width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pal_audio.errors import PalError
from pal_audio.transfer import send


@dataclass
class Packing:
    """Where the tokens of a batch stand in its packed row; also the context by which attention finds them.

    Attributes:
        mask_BL: True = token; rows begin with their tokens (right padding).
        flat_T: number of each packed token in the flattened (B * L).
        index_BL: number of each token in the packed row; 0 at padding.
        windows: of each layer's text, in tokens; None = all of it.
        is_full: there is no padding, so that packed and padded are two views of the same tokens.
        num_calls: attention calls so far.
    """

    mask_BL: Tensor
    flat_T: Tensor
    index_BL: Tensor
    windows: tuple[int | None, ...]
    is_full: bool
    num_calls: int = 0

    @classmethod
    def of(cls, attention_mask: Tensor, text_config: Any) -> "Packing":
        """Of a batch by its (B, L) mask, for an LLM of this configuration.

        Raises:
            PalError: the batch is not padded on the right, or a layer of the LLM attends in a way that is not known here.
        """
        mask_BL, windows = attention_mask.bool(), text_windows(text_config, "packing")
        if bool(mask_BL.all()):
            return cls._full(mask_BL, windows)
        if bool((mask_BL[:, 1:] & ~mask_BL[:, :-1]).any()):
            raise PalError("packed: the batch must be padded on the right, as the processor does with return_labels=True")
        flat_T = mask_BL.flatten().nonzero()[:, 0]
        index_BL = (mask_BL.flatten().cumsum(0) - 1).view(mask_BL.shape).masked_fill(~mask_BL, 0)
        return cls(mask_BL, flat_T, index_BL, windows, False)

    @classmethod
    def _full(cls, mask_BL: Tensor, windows: tuple[int | None, ...]) -> "Packing":
        """Of rows without padding, where the mask is."""
        flat_T = torch.arange(mask_BL.numel(), device=mask_BL.device)
        return cls(mask_BL, flat_T, flat_T.view(mask_BL.shape), windows, True)

    def to(self, device: torch.device) -> "Packing":
        """The same on another device."""
        if self.is_full:  # nothing travels
            return self._full(torch.ones(self.mask_BL.shape, dtype=torch.bool, device=device), self.windows)
        mask_BL, flat_T, index_BL = (send(item, device) for item in (self.mask_BL, self.flat_T, self.index_BL))
        return Packing(mask_BL, flat_T, index_BL, self.windows, self.is_full)

    def supervised(self, labels_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Places in the packed row that a supervised token follows in its row, and those tokens; (n,) each.

        Args:
            labels_BL: -100 = not supervised; on the device of the packing.
        """
        follows = (labels_BL[:, 1:] >= 0) & self.mask_BL[:, 1:]
        return self.index_BL[:, :-1][follows], labels_BL[:, 1:][follows]

    def pack(self, padded: Tensor) -> Tensor:
        """(B, L, ...) -> (1, T, ...)."""
        flat = padded.flatten(0, 1)
        return (flat if self.is_full else _Pack.apply(flat, self.flat_T))[None]

    def unpack(self, packed: Tensor) -> Tensor:
        """(1, T, ...) -> (B, L, ...), zero at padding."""
        flat = packed[0] if self.is_full else _Unpack.apply(packed[0], self.flat_T, self.mask_BL.numel())
        return flat.unflatten(0, self.mask_BL.shape)

    def unpack_heads(self, packed: Tensor) -> Tensor:
        """(1, H, T, d) -> (B, H, L, d)."""
        return self.unpack(packed.transpose(1, 2)).transpose(1, 2)

    def text_mask(self, layer: int) -> Tensor | None:
        """(1, 1, L, L) bool: which token of a row sees which in a layer; None for all before it.

        Rows begin with their tokens, so no token sees padding behind it.
        """
        window, num_tokens = self.windows[layer], self.mask_BL.shape[1]
        if window is None or num_tokens <= window:
            return None
        at = torch.arange(num_tokens, device=self.mask_BL.device)
        behind = at[:, None] - at[None, :]
        return ((behind >= 0) & (behind < window))[None, None]

    def check_called(self, num_layers: int) -> None:
        """The guard against rows that saw each other: every layer must have attended through us.

        Raises:
            RuntimeError: a layer did not.
        """
        if self.num_calls < num_layers:
            raise RuntimeError(
                f"packed: {num_layers - self.num_calls} of {num_layers} layers did not attend through PAL, so rows would have "
                "seen each other; train this LLM with packing off"
            )


class _Pack(torch.autograd.Function):
    """Chosen rows of a tensor, each once; autograd's own backward would add them up one by one, as if one could come twice."""

    @staticmethod
    def forward(flat: Tensor, rows_T: Tensor) -> Tensor:
        return flat[rows_T]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        flat, rows_T = inputs
        ctx.save_for_backward(rows_T)
        ctx.num_rows = flat.shape[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _spread(gradient, ctx.saved_tensors[0], ctx.num_rows), None


class _Unpack(torch.autograd.Function):
    """The reverse of `_Pack`: rows at their places in a tensor of zeros."""

    @staticmethod
    def forward(packed: Tensor, rows_T: Tensor, num_rows: int) -> Tensor:
        return _spread(packed, rows_T, num_rows)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient[ctx.saved_tensors[0]], None, None


def _spread(packed: Tensor, rows_T: Tensor, num_rows: int) -> Tensor:
    return packed.new_zeros(num_rows, *packed.shape[1:]).index_copy(0, rows_T, packed)


def text_windows(text_config: Any, what: str) -> tuple[int | None, ...]:
    """Window of each layer's text, as transformers reads it from a configuration when it makes masks; None = all of it.

    Args:
        text_config: of the LLM.
        what: asks for it, for the message.

    Raises:
        PalError: a layer attends in a way that is not known here.
    """
    num_layers = text_config.num_hidden_layers
    window = getattr(text_config, "sliding_window", None)
    kinds = (
        getattr(text_config, "layer_types", None) or ["full_attention" if window is None else "sliding_attention"] * num_layers
    )
    other = sorted(set(kinds) - {"full_attention", "sliding_attention"})
    if other:
        raise PalError(f"{what}: layers of kind {other[0]!r} ({text_config.model_type}) are not known to {what}; turn it off")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
