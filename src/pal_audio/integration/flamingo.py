"""Flamingo-style blocks: gated cross-attention to audio, then a feed-forward network of its own, before chosen decoder layers.

    text ──► + tanh(a) attention(norm(text), audio) ──► + tanh(b) FFN(norm(text)) ──► decoder layer ──► ...

The gates start at 0, so a fresh model is the bare LLM exactly; and a token that sees no clip passes unchanged at any gate.
Blocks hang on forward pre-hooks of decoder layers: the LLM keeps its modules, its parameters' names and its attention.

Source: arXiv 2204.14198, section 3.1 and appendix A.1 (gates, layer norms, FFN of four times the width with squared ReLU).
Ours are: audio tokens straight from the connector instead of a resampler; all earlier clips are seen unless `attends: last`.

Shapes: B rows, C clips, A audio tokens, L text tokens, T tokens of a packed row, D the LLM's width, H heads, d head width.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any, Protocol

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from pal_audio.errors import PalError
from pal_audio.integration.config import FlamingoConfig
from pal_audio.integration.key_values import compute_dtype
from pal_audio.integration.packing import Packing

# Up to transformers 5.18 or so a decoder layer checkpoints its `__call__`, hooks included; later ones its `forward` alone.
_HOOKS_ARE_CHECKPOINTED = "__call__" in vars(GradientCheckpointingLayer)

BlockKey = tuple[int, int]  # number of the stream among those that give keys, number of the decoder layer


class SquaredReLU(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.relu(inputs).square()


class FlamingoBlock(nn.Module):
    """One gated cross-attention dense block.

    Args:
        config: of the stream.
        index: the decoder layer that it stands before.
        token_size: width of audio tokens.
        hidden_size: the LLM's width.
        num_heads: the LLM's, where the configuration names none.

    Raises:
        PalError: the width is no multiple of the number of heads.
    """

    def __init__(self, config: FlamingoConfig, index: int, token_size: int, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.index = index
        self.only_last = config.attends == "last"
        self.num_heads = config.num_heads or num_heads
        if not self.num_heads or hidden_size % self.num_heads:
            raise PalError(f"flamingo: num_heads: {self.num_heads} does not divide the LLM's width {hidden_size}; name another")
        self.norm = nn.LayerNorm(hidden_size)
        self.query = nn.Linear(hidden_size, hidden_size, bias=False)
        self.key_value = nn.Linear(token_size, 2 * hidden_size, bias=False)
        self.output = nn.Linear(hidden_size, hidden_size, bias=False)
        self.attention_gate = nn.Parameter(torch.zeros(1))
        inner = config.ffn_factor * hidden_size
        self.ffn = nn.Sequential(
            nn.LayerNorm(hidden_size),
            nn.Linear(hidden_size, inner, bias=False),
            SquaredReLU(),
            nn.Linear(inner, hidden_size, bias=False),
        )
        self.ffn_gate = nn.Parameter(torch.zeros(1))

    def project(self, tokens_CAD: Tensor) -> tuple[Tensor, Tensor]:
        """Audio tokens (C, A, token_size) -> keys and values, each (C, H, A, d)."""
        keys, values = self.key_value(tokens_CAD.to(compute_dtype(self))).chunk(2, dim=-1)
        return self._heads(keys), self._heads(values)

    def forward(
        self, text_BLD: Tensor, keys_BHAd: Tensor, values_BHAd: Tensor, visible_B1LA: Tensor, packing: Packing | None = None
    ) -> Tensor:
        """Text that has heard audio.

        Args:
            text_BLD: what the decoder layer would get; (1, T, D) under packing.
            keys_BHAd, values_BHAd: of audio, in rows of the unpacked batch.
            visible_B1LA: bool, which token of the unpacked batch sees which key; one that sees none passes unchanged.
            packing: of the batch, if it is packed.

        Returns:
            As `text_BLD`, in its dtype.
        """
        dtype = compute_dtype(self)
        queries = self.query(self.norm(text_BLD.to(dtype)))
        queries_BHLd = self._heads(queries if packing is None else packing.unpack(queries))
        hears_B1L1 = visible_B1LA.any(-1, keepdim=True)
        # A query without any key would be undefined; it may look at all of them, since nothing of it is kept.
        attended = nn.functional.scaled_dot_product_attention(
            queries_BHLd, keys_BHAd.to(queries.dtype), values_BHAd.to(queries.dtype), attn_mask=visible_B1LA | ~hears_B1L1
        )
        attended, hears = rearrange(attended, "b h l d -> b l (h d)"), hears_B1L1[:, 0]
        if packing is not None:
            attended, hears = packing.pack(attended), packing.pack(hears)
        text_BLD = text_BLD + (self.attention_gate.tanh() * hears * self.output(attended)).to(text_BLD.dtype)
        return text_BLD + (self.ffn_gate.tanh() * hears * self.ffn(text_BLD.to(dtype))).to(text_BLD.dtype)

    def _heads(self, tokens: Tensor) -> Tensor:
        return rearrange(tokens, "b n (h d) -> b h n d", h=self.num_heads)


def streams_of_the_last_clip(blocks: dict[BlockKey, FlamingoBlock]) -> set[int]:
    """Streams in which a token hears the last clip before it alone."""
    return {stream for (stream, _), block in blocks.items() if block.only_last}


class BlockContext(Protocol):
    """What brings audio to the blocks of one forward."""

    blocks: dict[BlockKey, FlamingoBlock]
    entered: set[BlockKey]

    def block_keys_values(self, key: BlockKey) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, A, d) of one block."""
        ...

    def block_visible(self, key: BlockKey) -> Tensor:
        """(B, 1, L, A) bool: which text token of this call sees which key."""
        ...


def hang(layers: list[nn.Module], numbers: Iterable[int]) -> None:
    """Hang a hook on these decoder layers, by which text passes the blocks that a forward's audio brings.

    Hooks hold no block: a copied or sharded model finds its own through the context in `pal_audio`.
    """
    for number in sorted(set(numbers)):
        layers[number].register_forward_pre_hook(partial(_enter, number), with_kwargs=True)


def check_entered(context: BlockContext) -> None:
    """The guard against lost audio: text must have passed every block in this forward.

    Raises:
        RuntimeError: it did not, as after the hooks of a decoder layer were removed or the layer was replaced.
    """
    lost = sorted(layer for _, layer in set(context.blocks) - context.entered)
    if lost:
        raise RuntimeError(
            f"audio did not reach the flamingo blocks before layers {lost}: these decoder layers were replaced, lost their hooks "
            "or are not handed `pal_audio`; build or load the model anew, or take another integration for this LLM"
        )


def _enter(number: int, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The forward pre-hook of decoder layer `number`."""
    context: BlockContext | None = kwargs.get("pal_audio")
    keys = [] if context is None else [key for key in context.blocks if key[1] == number]
    if context is None or not keys:
        return None
    text = args[0] if args else kwargs["hidden_states"]
    checkpointing = getattr(layer, "gradient_checkpointing", False) and layer.training and torch.is_grad_enabled()
    for key in keys:
        through = partial(_through, context, key, context.block_visible(key), kwargs.get("pal_packing"))
        if checkpointing and not _HOOKS_ARE_CHECKPOINTED:
            text = checkpoint(through, text, use_reentrant=False)
        else:
            text = through(text)
        context.entered.add(key)
    return ((text, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": text})


def _through(context: BlockContext, key: BlockKey, visible: Tensor, packing: Packing | None, text: Tensor) -> Tensor:
    keys, values = context.block_keys_values(key)
    output: Tensor = context.blocks[key](text, keys, values, visible, packing)
    return output
