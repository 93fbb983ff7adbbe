"""Text with markers -> rows of token ids with slots behind each marker, and labels.

Shapes: B rows, L text tokens.
"""

from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from pal_audio.errors import PalError
from pal_audio.model.configuration import MARKER_TOKEN, SLOT_TOKEN


def tokenise(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    slots: Iterator[int],
    spans: list[tuple[int, int]],
    add_special_tokens: bool,
) -> tuple[list[int], list[int]]:
    """Token ids of one text with its slots written in, and labels.

    Args:
        tokenizer: of the processor.
        text: with markers.
        slots: of each clip that comes, the PLITS tokens; as many are taken as there are markers.
        spans: character ranges of `text` that get labels.
        add_special_tokens: see transformers.

    Raises:
        PalError: the text holds what UTF-8 cannot write, as Python makes it of bytes that are no UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PalError(f"text: no Unicode text at character {error.start} ({text[error.start]!a}); write it as UTF-8") from None
    pieces = text.split(MARKER_TOKEN)
    expanded, moved = pieces[0], list(spans)
    for piece in pieces[1:]:
        written = MARKER_TOKEN + SLOT_TOKEN * next(slots)
        extra, at = len(written) - len(MARKER_TOKEN), len(expanded)
        moved = [(start + extra * (start > at), end + extra * (end > at)) for start, end in moved]
        expanded += written + piece
    encoded = tokenizer(expanded, add_special_tokens=add_special_tokens, return_offsets_mapping=bool(spans))
    ids: list[int] = encoded["input_ids"]
    if not spans:
        return ids, [-100] * len(ids)
    inside = [
        any(start <= first and last <= end and first < last for start, end in moved) for first, last in encoded["offset_mapping"]
    ]
    return ids, [token if keep else -100 for token, keep in zip(ids, inside, strict=True)]


def pad(rows: list[tuple[list[int], list[int]]], longest: int, side: str, pad_id: int) -> dict[str, Any]:
    """`input_ids`, `attention_mask` and `labels` (B, L) of rows of ids and labels.

    Raises:
        PalError: `side` is neither "left" nor "right".
    """
    if side not in ("left", "right"):
        raise PalError(f"padding_side is 'left' or 'right', not {side!r}")
    columns: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for ids, labels in rows:
        missing = longest - len(ids)
        for name, values, filler in (("input_ids", ids, pad_id), ("attention_mask", [1] * len(ids), 0), ("labels", labels, -100)):
            columns[name].append([filler] * missing + values if side == "left" else values + [filler] * missing)
    return {name: torch.tensor(values, dtype=torch.int64) for name, values in columns.items()}
