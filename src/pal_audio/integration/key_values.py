"""A decoder layer's own way from inputs to keys and values, found in any transformers LLM.

LAL gives a layer audio as if it were text: normed by the layer's norm, projected by its key and value modules, key-normed
and rotated as the layer does it. The modules are *called*, so adapters, quantised linears and hooks apply to audio too;
where both maps and the norm are plain, one product of their weights stands for the calls (`normed_projection`). Families
differ in names and order; the differences are listed here and nowhere else, and `proof.prove` compares the result with
the layer itself.

Shapes: B rows, A audio tokens, D the LLM's width, K key/value heads, d head width.
"""

import sys
from collections.abc import Callable, Iterable
from functools import cached_property, partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from pal_audio.errors import PalError
from pal_audio.integration.normed_projection import NormedMap, are_plain, is_bare, normed_projection, one_product, rms_norm
from pal_audio.integration.unprojected import Unprojected

# A family's own names of what LAL calls in a decoder layer; the first that a layer has counts.
_LAYER_LISTS = ("layers", "h")
_INPUT_NORMS = ("input_layernorm", "ln_1")
ATTENTIONS = ("self_attn", "attention", "attn")
_FUSED = ("qkv_proj", "c_attn")  # all queries, then all keys, then all values
_FUSED_BY_HEAD = "query_key_value"  # query, key and value of one head after another

# Layers that skip rotary although their module has the function.
_NO_ROTARY: dict[str, Callable[[nn.Module], bool]] = {
    "cohere2": lambda attention: attention.sliding_window is None,
}


class UnsupportedLlmError(PalError):
    """The LLM's key/value path is not one that we reproduce; the message names layer and family."""


def find_decoder(llm: nn.Module) -> nn.Module:
    """The module that holds the decoder layers and the rotary embedding, without its head."""
    return llm.get_decoder()


def find_layers(llm: nn.Module) -> list[nn.Module]:
    """The LLM's decoder layers in order."""
    decoder = find_decoder(llm)
    found = _first(decoder, _LAYER_LISTS)
    if isinstance(found, nn.ModuleList):
        return list(found)
    family = llm.config.get_text_config().model_type
    raise UnsupportedLlmError(
        f"{family}: {type(decoder).__name__} has no list of decoder layers that LAL or Flamingo blocks could enter; PLITS works"
    )


def has_input_norm(layer: nn.Module) -> bool:
    """False for post-norm families (OLMo2), whose LAL projectors end in a norm of their own."""
    return _first(layer, _INPUT_NORMS) is not None


class LayerKeyValues:
    """Keys and values of one decoder layer for inputs that are not text. Holds references, owns no parameter."""

    def __init__(self, llm: nn.Module, index: int) -> None:
        self.index = index
        self.family = llm.config.get_text_config().model_type
        self.layer = find_layers(llm)[index]
        self.input_norm = _first(self.layer, _INPUT_NORMS)
        self._rms_norm = rms_norm(self.input_norm)
        attention = _first(self.layer, ATTENTIONS)
        if attention is None or _first(attention, ("k_proj", *_FUSED, _FUSED_BY_HEAD)) is None:
            raise UnsupportedLlmError(
                f"{self.family}: layer {index} ({type(attention or self.layer).__name__}) has no key and value projections "
                "that LAL knows; PLITS works"
            )
        self.attention: nn.Module = attention
        self.head_dim: int = getattr(attention, "head_dim", None) or attention.head_size
        self.rotary_emb: nn.Module | None = getattr(find_decoder(llm), "rotary_emb", None)
        layer_types = getattr(llm.config.get_text_config(), "layer_types", None)
        # Gemma 3 keeps one set of rotary frequencies per layer type; then its module has a dict of rope types.
        several_ropes = isinstance(getattr(self.rotary_emb, "rope_type", None), dict)
        self.rope_layer_type: str | None = layer_types[index] if several_ropes and layer_types else None

    @property
    def uses_rotary(self) -> bool:
        skips = _NO_ROTARY.get(self.family)
        return (
            self.rotary_emb is not None
            and bool(getattr(self.attention, "use_rope", True))
            and not (skips is not None and skips(self.attention))
        )

    def modules(self) -> list[nn.Module]:
        """The LLM's modules that audio passes in this layer (for fingerprints)."""
        found = [getattr(self.attention, name) for name in self._names]
        return [module for module in (self.input_norm, *found) if isinstance(module, nn.Module)]

    @cached_property
    def _names(self) -> list[str]:
        """Of what the attention has; looking for the others with every question would take longer than all the rest."""
        names = ("k_proj", "v_proj", *_FUSED, _FUSED_BY_HEAD, "k_norm")
        return [name for name in names if hasattr(self.attention, name)]

    def project(self, inputs: Tensor | Unprojected) -> tuple[Tensor, Tensor]:
        """Inputs of the layer (B, A, D), or what they are made of -> its un-rotated keys and its values, each (B, K, A, d), in
        the layer's dtype."""
        keys, values = self._key_value_projection(inputs)
        key_norm: Any = getattr(self.attention, "k_norm", None)
        heads = keys.shape[-1] // self.head_dim
        # OLMo2 norms all heads together, Qwen3 and Gemma 3 each head on its own.
        norm_is_flat = key_norm is not None and key_norm.weight.ndim == 1 and key_norm.weight.numel() == keys.shape[-1]
        if norm_is_flat:
            keys = key_norm(keys)
        keys = keys.unflatten(-1, (heads, self.head_dim))
        if key_norm is not None and not norm_is_flat:
            keys = key_norm(keys)
        values = values.unflatten(-1, (heads, self.head_dim))
        return keys.transpose(1, 2), values.transpose(1, 2)

    def normed_map(self) -> NormedMap | None:
        """Norm, and key and value maps side by side as one map; None where calling them is something else."""
        attention: Any = self.attention
        if self._rms_norm is None or not is_bare(self._rms_norm.norm) or not self._has_plain_maps():
            return None
        maps = attention.k_proj, attention.v_proj
        bias_O = None if maps[0].bias is None else torch.cat([each.bias for each in maps])
        return NormedMap(self._rms_norm, torch.cat([each.weight for each in maps]), bias_O)

    def _has_plain_maps(self) -> bool:
        attention: Any = self.attention
        return hasattr(attention, "k_proj") and are_plain(attention.k_proj, attention.v_proj)

    def _key_value_projection(self, inputs: Tensor | Unprojected) -> tuple[Tensor, Tensor]:
        """Norm and maps: as one product where they allow it, the map before them in it too, and else one after another."""
        attention: Any = self.attention
        if isinstance(inputs, Unprojected):
            outputs = inputs.outputs()
            if outputs is not None:
                return self._split(outputs)
            inputs = inputs.inputs()
        normed = self.normed_map()
        if normed is not None:
            return self._split(normed_projection(inputs, normed))
        inputs_BAD = inputs.to(compute_dtype(self.layer))
        hidden = inputs_BAD if self.input_norm is None else self.input_norm(inputs_BAD)
        if self._has_plain_maps():  # reading long audio twice costs more than joining two small matrices
            keys, values = one_product([attention.k_proj, attention.v_proj], partial(nn.functional.linear, hidden))
            return keys, values
        if hasattr(attention, "k_proj"):
            return attention.k_proj(hidden), attention.v_proj(hidden)
        if hasattr(attention, _FUSED_BY_HEAD):
            heads = attention.query_key_value(hidden).unflatten(-1, (-1, 3 * self.head_dim))
            keys, values = heads[..., self.head_dim :].chunk(2, dim=-1)
            return keys.flatten(-2), values.flatten(-2)
        fused: Any = _first(attention, _FUSED)
        num_queries = attention.config.num_attention_heads * self.head_dim
        keys, values = fused(hidden)[..., num_queries:].chunk(2, dim=-1)
        return keys, values

    def _split(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        attention: Any = self.attention
        keys, values = outputs.split([attention.k_proj.out_features, attention.v_proj.out_features], dim=-1)
        return keys, values

    def rotary_tables(self, like: Tensor, positions_BA: Tensor) -> tuple[Tensor, Tensor] | None:
        """cos and sin of the positions (float allowed) in `like`'s dtype, or None where the layer does not rotate."""
        if not self.uses_rotary:
            return None
        assert self.rotary_emb is not None
        extra = () if self.rope_layer_type is None else (self.rope_layer_type,)
        return self.rotary_emb(like, positions_BA, *extra)

    @cached_property
    def turns_halves(self) -> bool:
        """Whether `rotate` turns the two halves of a head against each other over its whole width, as a kernel can do itself."""
        positions = torch.tensor([[1.0, 2.0]])
        device = next(self.attention.parameters()).device
        tables = self.rotary_tables(torch.empty(0, device=device), positions.to(device))
        if tables is None or tables[0].shape[-1] != self.head_dim:
            return False
        keys = torch.arange(2.0 * self.head_dim, device=device).view(1, 1, 2, -1) / self.head_dim
        one, two = keys.chunk(2, dim=-1)
        cos, sin = (table[:, None, :, : self.head_dim // 2] for table in tables)
        expected = torch.cat([one * cos - two * sin, two * cos + one * sin], dim=-1)
        return torch.allclose(self.rotate(keys, tables), expected, atol=1e-5)

    def rotate(self, keys_BKAd: Tensor, tables: tuple[Tensor, Tensor] | None) -> Tensor:
        """Rotate keys with the family's own function (half, interleaved or partial; never ours)."""
        if tables is None:
            return keys_BKAd
        apply: Any = sys.modules[type(self.attention).__module__].apply_rotary_pos_emb
        return apply(keys_BKAd[:, :1], keys_BKAd, *tables)[1]  # it rotates queries too: one head is the least of them


def _first(module: nn.Module, names: Iterable[str]) -> nn.Module | None:
    return next((getattr(module, name) for name in names if hasattr(module, name)), None)


def compute_dtype(module: nn.Module) -> torch.dtype:
    """The floating dtype that a module's inputs should have: that of its first floating parameter (quantised ones are not)."""
    floats = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    return next((parameter.dtype for parameter in module.parameters() if parameter.dtype in floats), torch.get_default_dtype())


def audio_kv(layer: LayerKeyValues, inputs_BAD: Tensor, positions_BA: Tensor) -> tuple[Tensor, Tensor]:
    """Rotated keys and values of audio in one layer: the whole path, for inputs already in the layer's space."""
    keys, values = layer.project(inputs_BAD)
    return layer.rotate(keys, layer.rotary_tables(inputs_BAD, positions_BA)), values


def max_span(llm_config: object) -> int | None:
    """Longest position that `span` may use: the LLM's trained context, or None where the config does not say."""
    return getattr(llm_config, "max_position_embeddings", None)


def max_positions(llm: nn.Module, mode: str) -> int | None:
    """How many positions text and audio may take together, or None where nothing bounds them.

    Args:
        llm: a transformers model.
        mode: "span": no more than the LLM was trained on. "zero": a bound is there only where positions are learned ones (GPT-2),
            since such a table has no further row.
    """
    if mode == "span":
        return max_span(llm.config.get_text_config())
    decoder: Any = find_decoder(llm)
    return decoder.wpe.num_embeddings if hasattr(decoder, "wpe") else None


def guard_learned_positions(llm: nn.Module) -> None:
    """Let a table of learned positions say that it has no further row, in place of an index error. On a GPU it does not look."""
    table = getattr(find_decoder(llm), "wpe", None)
    if table is not None:
        table.register_forward_pre_hook(_check_row)


def _check_row(table: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    rows, positions = cast(nn.Embedding, table).num_embeddings, inputs[0]
    if positions.is_cpu and not torch.compiler.is_compiling() and positions.numel() and int(positions.max()) >= rows:
        reached = int(positions.max())
        raise PalError(
            f"positions: the text reaches position {reached}, but the LLM has {rows}, counted from 0; shorten the text or "
            "ask for fewer tokens (max_new_tokens)"
        )


def embedding_rms(llm: nn.Module) -> float:
    """RMS of the embedding *module's* output (Gemma's module scales its rows), over up to 4096 rows of the vocabulary."""
    embedding = llm.get_input_embeddings()
    with torch.no_grad():
        rows = torch.arange(min(4096, embedding.num_embeddings), device=embedding.weight.device)
        return float(embedding(rows).float().pow(2).mean().sqrt())
