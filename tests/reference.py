"""A plain second implementation of PLITS, LAL and Flamingo-style blocks, one row at a time, without padding or caches.

The LLM's own eager attention modules are called on [audio; text] with an explicit mask and the audio rows are dropped, so
residuals, norms and projections are the family's own code; a Flamingo block is its formula over its weights, token by token.
Positions and visibility are written out in loops.
"""

import copy
import types
from typing import Any

import torch
from torch import Tensor

from pal_audio.model import PalForConditionalGeneration


def reference_logits(model: PalForConditionalGeneration, ids: list[int], tokens: list[list[Tensor]]) -> Tensor:
    """Logits (L, V) of one unpadded row.

    Args:
        model: the model under test; its LLM is copied.
        ids: token ids with markers and slots.
        tokens: for each stream in order, the audio tokens (n, D) of each clip of the row.
    """
    llm = copy.deepcopy(model.language_model)
    llm.set_attn_implementation("eager")
    audio, marker_id, slot_id = model._audio, model.config.audio_token_id, model.config.audio_slot_token_id
    num_clips = ids.count(marker_id)
    kinds = [stream.config.integration.type for stream in model.streams]
    is_plits = [stream.config.integration.type == "plits" for stream in model.streams]
    slots = [
        torch.cat([tokens[s][c] for s in range(len(tokens)) if is_plits[s]]) if any(is_plits) else None for c in range(num_clips)
    ]
    spans = [max([len(tokens[s][c]) for s in range(len(tokens)) if kinds[s] != "flamingo"], default=0) for c in range(num_clips)]

    # Positions, and what is embedded where.
    positions, markers, embeddings, position, clip, used = [], [], [], 0, -1, 0
    table = llm.get_input_embeddings()
    for token in ids:
        if token not in (slot_id,) and clip >= 0 and used >= 0:  # the clip before is over
            num = 0 if slots[clip] is None else len(slots[clip])
            position = markers[clip] + 1 + (max(num, spans[clip]) if audio.positions == "span" else num)
            used = -1
        if token == marker_id:
            clip, used = clip + 1, 0
            markers.append(position)
            embeddings.append(model.marker)
        elif token == slot_id:
            embeddings.append(slots[clip][used])
            used += 1
        else:
            embeddings.append(table(torch.tensor(token)))
        positions.append(position)
        position += 1
    num_text = len(ids)

    # Audio of each layer: inputs, positions, and the position after which it is seen.
    layers_of = {number: ([], [], []) for s, stream in enumerate(model.streams) if kinds[s] == "lal" for number in stream.layers}
    for s, stream in enumerate(model.streams):
        if kinds[s] != "lal":
            continue
        for number in stream.layers:
            for c in range(num_clips):
                n = len(tokens[s][c])
                inputs, places, after = layers_of[number]
                inputs.append(stream.projectors(number, tokens[s][c]))
                places += [
                    markers[c] + 1 + (i + 0.5) * spans[c] / n - 0.5 if audio.positions == "span" else 0.0 for i in range(n)
                ]
                num_slots = 0 if slots[c] is None else len(slots[c])
                after += [markers[c] + (0 if audio.summary_sees_audio else num_slots)] * n

    decoder = llm.get_decoder()
    text_positions = torch.tensor([positions])
    layers = decoder.h if hasattr(decoder, "h") else decoder.layers
    for number, layer in enumerate(layers):
        _patch(layer, number, decoder, layers_of.get(number), text_positions, num_text)
    for s, stream in enumerate(model.streams):
        if kinds[s] != "flamingo":
            continue
        # What each text token hears: (clip, token) pairs of the clips whose marker (and slots) it follows, or of the last one.
        heard = []
        for position in positions:
            num_slots = [0 if item is None or audio.summary_sees_audio else len(item) for item in slots]
            before = [c for c in range(num_clips) if position > markers[c] + num_slots[c]]
            passed = [c for c in range(num_clips) if position > markers[c]]
            if stream.config.integration.attends == "last":
                before = [c for c in before if c == passed[-1]]
            heard.append(torch.cat([tokens[s][c] for c in before]) if before else None)
        for number in stream.layers:
            _stand_before(layers[number], dict(stream.blocks[str(number)].named_parameters()), stream, heard, llm)
    with torch.no_grad():
        return llm(inputs_embeds=torch.stack(embeddings)[None], position_ids=text_positions, use_cache=False).logits[0]


def _patch(layer: Any, number: int, decoder: Any, audio: Any, text_positions: Tensor, num_text: int) -> None:
    attention = next(getattr(layer, name) for name in ("self_attn", "attention", "attn") if hasattr(layer, name))
    norm = next((getattr(layer, name) for name in ("input_layernorm", "ln_1") if hasattr(layer, name)), lambda inputs: inputs)
    original = attention.forward
    window = getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None))
    types_of = getattr(attention.config, "layer_types", None)
    if types_of is not None and types_of[number] != "sliding_attention":
        window = None
    rotary = getattr(decoder, "rotary_emb", None)
    several = isinstance(getattr(rotary, "rope_type", None), dict)

    def forward(
        self: Any, hidden_states: Tensor, position_embeddings: Any = None, attention_mask: Any = None, **kwargs: Any
    ) -> Any:  # the layer's own tables and mask are of text alone
        inputs, places, after = audio if audio else ([], [], [])
        num_audio = len(places)
        joined, positions = hidden_states, text_positions.float()
        if num_audio:
            joined = torch.cat([norm(torch.cat(inputs)[None]), hidden_states], dim=1)
            positions = torch.cat([torch.tensor([places]), text_positions.float()], dim=1)
        mask = torch.full((num_audio + num_text, num_audio + num_text), torch.finfo(joined.dtype).min)
        for row in range(num_text):
            for column in range(num_audio):
                if text_positions[0, row] > after[column]:
                    mask[num_audio + row, column] = 0
            for column in range(row + 1):
                if window is None or row - column < window:
                    mask[num_audio + row, num_audio + column] = 0
        for column in range(num_audio):
            mask[column, column] = 0  # audio rows are dropped; they only must not be empty
        if rotary is not None:
            extra = (types_of[number],) if several else ()
            kwargs["position_embeddings"] = rotary(joined, positions, *extra)
        kwargs = {name: value for name, value in kwargs.items() if name not in ("past_key_values", "layer_past")}
        if "position_ids" in kwargs:
            kwargs["position_ids"] = positions
        output, weights = original(hidden_states=joined, attention_mask=mask[None, None], **kwargs)
        return output[:, num_audio:], weights

    attention.forward = types.MethodType(forward, attention)


def _stand_before(layer: Any, weights: dict[str, Tensor], stream: Any, heard: list[Tensor | None], llm: Any) -> None:
    """Let every token pass a Flamingo block before this layer; streams stand in their order, so the last patched runs last."""
    original = layer.forward
    blocks = layer.__dict__.setdefault("reference_blocks", [])
    heads = stream.config.integration.num_heads or llm.config.get_text_config().num_attention_heads
    blocks.append((weights, heads, heard))
    if len(blocks) > 1:
        return

    def forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        rows = list(hidden_states[0])
        for block in blocks:
            rows = [_flamingo(block[0], block[1], row, audio) for row, audio in zip(rows, block[2], strict=True)]
        return original(torch.stack(rows)[None], *args, **kwargs)

    layer.forward = types.MethodType(forward, layer)


def _flamingo(weights: dict[str, Tensor], heads: int, text: Tensor, audio: Tensor | None) -> Tensor:
    """arXiv 2204.14198, figure 4, for one text token (D,) and the audio tokens (n, D) that it hears."""
    if audio is None:
        return text
    normed = _layer_norm(text, weights["norm.weight"], weights["norm.bias"])
    width = len(text)
    query, size = weights["query.weight"] @ normed, width // heads
    keys, values = audio @ weights["key_value.weight"][:width].T, audio @ weights["key_value.weight"][width:].T
    mixed = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = torch.exp(keys[:, part] @ query[part] / size**0.5)
        mixed.append((scores / scores.sum()) @ values[:, part])
    text = text + torch.tanh(weights["attention_gate"]) * (weights["output.weight"] @ torch.cat(mixed))
    inner = weights["ffn.1.weight"] @ _layer_norm(text, weights["ffn.0.weight"], weights["ffn.0.bias"])
    return text + torch.tanh(weights["ffn_gate"]) * (weights["ffn.3.weight"] @ torch.where(inner > 0, inner, 0.0) ** 2)


def _layer_norm(row: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return (row - row.mean()) / torch.sqrt(row.var(correction=0) + 1e-5) * weight + bias
