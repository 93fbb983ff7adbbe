"""More audio behind a kept text cache: new clips in a later turn, without recomputing what the cache holds.

The cached text keeps its positions and its clips keep their rotated keys; a new clip is placed by the same rules as in the
whole text, and its keys stand behind the row's own. So the next forward equals recomputation. Source: our choice.

Shapes: B rows, L text tokens, C clips, R clips of a row, K key/value heads, A audio keys of a row, d head width.
"""

from dataclasses import replace

import torch
from torch import Tensor

from pal_audio.errors import PalError
from pal_audio.integration.attached import AttachedAudio, attach, check_context
from pal_audio.integration.flamingo import streams_of_the_last_clip
from pal_audio.integration.joining import concatenate_clips
from pal_audio.integration.memory import AudioMemory
from pal_audio.integration.positions import NOWHERE, UNKNOWN_TOKEN, KeyLayout, Placement, place


def whole_text(known: AttachedAudio | None, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Ids (B, M) of everything up to the mask's end, on the CPU; UNKNOWN_TOKEN for text that only the cache knows.

    Args:
        known: the audio that the cache was made with, or None if it heard none.
        input_ids: (B, L) what follows the cache, or the whole text.
        attention_mask: (B, M), M >= L.

    Raises:
        PalError: the rows are not the cache's, or what is given of the known prompt differs from it.
    """
    ids = input_ids.cpu()
    rows, num_tokens = ids.shape
    start = attention_mask.shape[1] - num_tokens
    if known is not None and known.prompt_BL.shape[0] != rows:
        raise PalError(f"the text cache holds {known.prompt_BL.shape[0]} rows, the text {rows}; give a row for each")
    whole = torch.full((rows, start + num_tokens), UNKNOWN_TOKEN, dtype=ids.dtype)
    if known is not None:
        known.check(input_ids, attention_mask.shape[1], new_clips=True)
        width = min(start, known.prompt_BL.shape[1])
        whole[:, :width] = known.prompt_BL[:, :width].cpu()
    whole[:, start:] = ids
    return whole


def check_same_positions(known: AttachedAudio, placement: Placement) -> None:
    """That text which a cache holds stands where it stood.

    Raises:
        PalError: a clip before it grew, or the mask is another.
    """
    old = known.placement.position_ids_BL.cpu()
    new = placement.position_ids_BL.cpu()[:, : old.shape[1]]
    if not torch.equal(old, new):
        raise PalError(
            "the cached text would move: its mask is another, or a clip before it has grown, which is possible only under "
            "`positions: zero` without PLITS tokens, or before any text follows the clip; start without the cache"
        )


def extend(
    known: AttachedAudio,
    memory: AudioMemory,
    whole_BM: Tensor,
    attention_mask: Tensor,
    mode: str,
    device: torch.device,
    summary_sees_audio: bool,
    max_positions: int | None,
) -> AttachedAudio:
    """A kept cache's audio with new clips behind it.

    Args:
        known: the audio that the cache was made with.
        memory: of the new clips alone, in reading order of their markers.
        whole_BM: all ids, see `whole_text`.
        attention_mask: (B, M).
        mode, device, summary_sees_audio, max_positions: as in `attach`.

    Raises:
        PalError: markers, slots and clips do not match, the cached text would move, or `span` runs past the LLM's context.
    """
    if known.live is not None:
        raise PalError("this text cache was made while gradients were on; make it under torch.no_grad() to go on with a new clip")
    if memory.order is not None:
        raise PalError("a shared memory does not go behind a kept text cache; name its clip for every row with `select` instead")
    known.remember_all()
    old = known.placement.to(torch.device("cpu"))
    old_per_row = (old.clips_BR >= 0).sum(1)
    per_row = (whole_BM == known.audio_ids[0]).sum(1)
    new_per_row = per_row - old_per_row
    if bool((new_per_row < 0).any()) or int(new_per_row.sum()) != memory.num_clips:
        raise PalError(
            f"the text holds {int(new_per_row.clamp(min=0).sum())} new audio markers behind the cache "
            f"but {memory.num_clips} clips were given"
        )
    clips = concatenate_clips([known.clips, memory.clips])
    numbers_BR = _join_rows(old.clips_BR, old_per_row, new_per_row, known.clips.num_clips)
    order = numbers_BR[numbers_BR >= 0]
    mask = attention_mask.cpu()
    placement = place(whole_BM, mask, known.audio_ids, clips.num_slots_C[order], clips.spans_C[order], mode)
    placement = replace(placement, clips_BR=numbers_BR)
    check_same_positions(known, placement)
    check_context(placement, clips, mode, max_positions)

    # The new clips alone, placed where they stand in the whole.
    new_placement = _last_columns(placement, old_per_row, new_per_row, known.clips.num_clips)
    new = attach(
        memory, whole_BM, mask, known.audio_ids, known.rules, known.blocks, _layers(known), mode, device, summary_sees_audio,
        placement=new_placement,
    )  # fmt: skip
    next_marker_B1 = new_placement.markers_BR[:, :1].to(device)
    only_last = streams_of_the_last_clip(known.blocks)
    layouts = [
        _join_layouts(one, other, next_marker_B1 if stream in only_last else None)
        for stream, (one, other) in enumerate(zip(known.layouts, new.layouts, strict=True))
    ]

    def joined(old: tuple[Tensor, Tensor], more: tuple[Tensor, Tensor], streams: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        widths = [[part.layouts[stream].after_BA.shape[1] for stream in streams] for part in (known, new)]
        keys, values = (
            _interleave(one.expand(len(whole_BM), -1, -1, -1).split(widths[0], dim=2), other.split(widths[1], dim=2))
            for one, other in zip(old, more, strict=True)
        )
        return keys, values

    remembered = {
        layer: joined(known.remembered[layer], new.remembered[layer], streams)
        for layer, streams in known.streams_of_layer.items()
    }
    block_memory = {key: joined(known.block_memory[key], new.block_memory[key], key[:1]) for key in known.blocks}
    return replace(
        known, clips=clips, placement=placement.to(device), layouts=layouts, remembered=remembered, block_memory=block_memory,
        prompt_BL=whole_BM.to(device), consumed=set(), entered=set(), _visible={}, _made={}, _rotary={},
    )  # fmt: skip


def _layers(known: AttachedAudio) -> list[frozenset[int]]:
    streams = range(len(known.layouts))
    return [frozenset(layer for layer, members in known.streams_of_layer.items() if stream in members) for stream in streams]


def _join_rows(old_BR: Tensor, old_B: Tensor, new_B: Tensor, num_old: int) -> Tensor:
    """Clip numbers of rows, old ones first, the new ones numbered from `num_old` in reading order; -1 behind them."""
    width = int((old_B + new_B).max())
    joined = torch.full((len(old_BR), width), -1, dtype=torch.int64)
    following = num_old
    for row, (num_kept, num_new) in enumerate(zip(old_B.tolist(), new_B.tolist(), strict=True)):
        joined[row, :num_kept] = old_BR[row, :num_kept]
        joined[row, num_kept : num_kept + num_new] = torch.arange(following, following + num_new)
        following += num_new
    return joined


def _last_columns(placement: Placement, old_B: Tensor, new_B: Tensor, num_old: int) -> Placement:
    """The placement's new clips alone, numbered from 0."""
    width = int(new_B.max()) if new_B.numel() else 0
    columns = torch.arange(width)
    exists = columns[None] < new_B[:, None]
    places = (old_B[:, None] + columns[None]).clamp(max=placement.clips_BR.shape[1] - 1)
    return Placement(
        (placement.clips_BR.gather(1, places) - num_old).masked_fill(~exists, -1),
        placement.markers_BR.gather(1, places).masked_fill(~exists, NOWHERE),
        placement.shifts_BR.gather(1, places).masked_fill(~exists, 0),
        placement.position_ids_BL,
    )


def _join_layouts(one: KeyLayout, other: KeyLayout, next_marker_B1: Tensor | None) -> KeyLayout:
    """Keys of a row one after another. They are arranged already, so `source_BA` is not read again.

    Args:
        one, other: old and new keys.
        next_marker_B1: where text hears the last clip before it alone, the first new marker: the old keys' last reader.
    """
    source, positions, after = (
        torch.cat([getattr(one, name), getattr(other, name)], 1) for name in ("source_BA", "positions_BA", "after_BA")
    )
    until = None
    if next_marker_B1 is not None:
        old, new = (torch.full_like(part.after_BA, NOWHERE) if part.until_BA is None else part.until_BA for part in (one, other))
        until = torch.cat([old.minimum(next_marker_B1), new], 1)
    return KeyLayout(source, positions, after, is_identity=False, until_BA=until)


def _interleave(old: tuple[Tensor, ...], new: tuple[Tensor, ...]) -> Tensor:
    """(B, K, A, d): each stream's old keys, then its new ones."""
    return torch.cat([part for pair in zip(old, new, strict=True) for part in pair], dim=2)
