"""Where clips stand in text: markers, slots, rotary positions, visibility.

A clip at marker position p with k slots and N = tokens of its longest stream:

    span:  marker p | slots p+1 .. p+k | LAL keys spread over p+1 .. p+N | text goes on at p + 1 + max(k, N)
    zero:  marker p | slots p+1 .. p+k | LAL keys at rotary position 0   | text goes on at p + 1 + k

Everything here is a function of position ids, never of slot numbers, so it holds under padding, beams, static caches,
chunked prefill and kept caches. Source: our choice (the paper does not say where audio keys stand).

Shapes: B rows, L text tokens of this call, M attention mask columns (M >= L), C clips of the batch in reading order,
R the largest number of clips in a row, A audio tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pal_audio.errors import PalError
from pal_audio.transfer import send

NOWHERE = torch.iinfo(torch.int64).max  # marker position of a clip that does not exist: no text comes after it
UNKNOWN_TOKEN = -1  # stands for text that only a cache knows; never an audio id


@dataclass
class Placement:
    """The clips of a prompt: which stand in which row, and where.

    Attributes:
        clips_BR: clip number of each row's clips in order; -1 where a row has fewer.
        markers_BR: position ids of their markers; NOWHERE where there is none.
        shifts_BR: positions by which text after the clip moves on, beyond its own slots.
        position_ids_BL: position ids of the prompt.
    """

    clips_BR: Tensor
    markers_BR: Tensor
    shifts_BR: Tensor
    position_ids_BL: Tensor

    def to(self, device: torch.device) -> "Placement":
        """The same on another device."""
        return Placement(*(send(tensor, device) for tensor in vars(self).values()))


def text_positions(
    input_ids: Tensor, attention_mask: Tensor, audio_ids: tuple[int, int], shifts_BR: Tensor, num_clips_B: Tensor
) -> Tensor:
    """Position ids of text tokens, which may be the last L of M (a kept cache).

    Args:
        input_ids: (B, L).
        attention_mask: (B, M), non-zero = token.
        audio_ids: marker id and slot id.
        shifts_BR: see `Placement`; 0 where a row has fewer clips.
        num_clips_B: clips of each row, those in the cache included.

    Returns:
        (B, L) int64; 0 at padding.
    """
    marker_id, slot_id = audio_ids
    is_marker = input_ids == marker_id
    inside_clip = is_marker | (input_ids == slot_id)
    earlier = num_clips_B[:, None] - is_marker.sum(1, keepdim=True)  # clips that the cache already holds
    passed = earlier + is_marker.cumsum(1) - inside_clip.long()  # a clip's own shift starts behind its last slot
    total_shift = torch.nn.functional.pad(shifts_BR.cumsum(1), (1, 0))
    mask = attention_mask.ne(0)
    base = (mask.long().cumsum(1) - 1)[:, -input_ids.shape[1] :]
    positions = base + total_shift.gather(1, passed.clamp(0, shifts_BR.shape[1]))
    return positions.masked_fill(~mask[:, -input_ids.shape[1] :], 0)


def place(
    input_ids: Tensor, attention_mask: Tensor, audio_ids: tuple[int, int], slots_C: Tensor, spans_C: Tensor, mode: str
) -> Placement:
    """Find the markers of a full prompt, check them against the clips, and give positions.

    Args:
        input_ids: (B, L) the full prompt.
        attention_mask: (B, L).
        audio_ids: marker id and slot id.
        slots_C: PLITS tokens of each clip.
        spans_C: N of each clip.
        mode: "span" or "zero".

    Raises:
        PalError: the text holds more or fewer markers than there are clips, a clip's slots are not its tokens, or the mask is
            of another shape.
    """
    if attention_mask.shape != input_ids.shape:
        raise PalError(
            f"attention_mask has shape {list(attention_mask.shape)}, input_ids {list(input_ids.shape)}; give one for each"
        )
    marker_id, slot_id = audio_ids
    is_marker, is_slot = input_ids == marker_id, input_ids == slot_id
    _check_counts(is_marker, is_slot, slots_C)
    if bool(((is_marker | is_slot) & attention_mask.eq(0)).any()):
        raise PalError("attention_mask hides an audio marker or slot; only padding may be hidden")
    per_row = is_marker.sum(1)
    num_columns = int(per_row.max()) if per_row.numel() else 0
    columns = torch.arange(num_columns, device=input_ids.device)
    exists = columns[None, :] < per_row[:, None]
    clips_BR = (per_row.cumsum(0) - per_row)[:, None] + columns[None, :]
    clips_BR = clips_BR.masked_fill(~exists, -1)
    extra_C = (spans_C - slots_C).clamp(min=0) if mode == "span" else torch.zeros_like(slots_C)
    if extra_C.numel():
        shifts_BR = extra_C[clips_BR.clamp(min=0)].masked_fill(~exists, 0)
    else:
        shifts_BR = torch.zeros_like(clips_BR)
    position_ids = text_positions(input_ids, attention_mask, audio_ids, shifts_BR, per_row)
    markers_BR = torch.full_like(clips_BR, NOWHERE)
    markers_BR[exists] = position_ids[is_marker]
    return Placement(clips_BR, markers_BR, shifts_BR, position_ids)


def _check_counts(is_marker: Tensor, is_slot: Tensor, slots_C: Tensor) -> None:
    num_clips = slots_C.shape[0]
    if int(is_marker.sum()) != num_clips:
        counts = is_marker.sum(1).tolist()
        raise PalError(f"the text holds {sum(counts)} audio markers (per row: {counts}) but {num_clips} clips were given")
    # Slots of a row before its first marker belong to no clip; number clips over the whole batch, row by row.
    rows = is_marker.shape[0]
    clip_of_token = is_marker.flatten().cumsum(0) - 1
    before_marker = is_slot & (is_marker.cumsum(1) == 0)
    previous = torch.zeros_like(is_marker)
    previous[:, 1:] = (is_marker | is_slot)[:, :-1]
    loose = (is_slot & ~previous) | before_marker
    found = torch.bincount(clip_of_token[(is_slot & ~before_marker).flatten()], minlength=num_clips)
    if bool(loose.any()):
        row = int(loose.any(1).nonzero()[0])
        raise PalError(
            f"row {row} of {rows}: an audio slot does not follow its marker; let the processor write markers and slots"
        )
    wrong = (found != slots_C).nonzero()
    if wrong.numel():
        clip = int(wrong[0])
        row = int(is_marker.sum(1).cumsum(0).gt(clip).nonzero()[0])
        raise PalError(
            f"clip {clip} (row {row}): the text holds {int(found[clip])} audio slots "
            f"but the connector gave {int(slots_C[clip])} tokens"
        )


def spread(lengths_C: Tensor, spans_C: Tensor, num_tokens: int) -> Tensor:
    """Where a stream's tokens stand on their clip's axis of N positions, in time order.

    Args:
        lengths_C: tokens of each clip in this stream.
        spans_C: N of each clip.
        num_tokens: A, the padded width.

    Returns:
        (C, A) float32 in [0, N): token i of n at (i + 1/2) N/n - 1/2, which is i itself for the longest stream.
    """
    index = torch.arange(num_tokens, device=lengths_C.device, dtype=torch.float32)
    ratio = spans_C.float() / lengths_C.clamp(min=1).float()
    return (index[None, :] + 0.5) * ratio[:, None] - 0.5


def same_in_every_row(placement: Placement, mode: str) -> bool:
    """Whether several rows hold the same clips at the same rotary positions, so that one copy of the keys serves them all."""
    same_clips = bool((placement.clips_BR == placement.clips_BR[:1]).all())
    same_places = mode == "zero" or bool((placement.markers_BR == placement.markers_BR[:1]).all())
    return len(placement.clips_BR) > 1 and placement.clips_BR.numel() > 0 and same_clips and same_places


@dataclass
class KeyLayout:
    """One LAL stream's keys laid out in the rows of a batch.

    Attributes:
        source_BA: index of each key in the stream's flattened (C * A) tokens.
        positions_BA: float rotary positions.
        after_BA: a key is seen by text at positions greater than this; NOWHERE at padding.
        is_identity: every row has exactly one clip of its own, or all rows have the only one, so that nothing moves.
        until_BA: a key is seen by text at positions up to this one; None: by all that follows.
        is_shared: every row has the same keys at the same positions, so that they are held once.
    """

    source_BA: Tensor
    positions_BA: Tensor
    after_BA: Tensor
    is_identity: bool
    until_BA: Tensor | None = None
    is_shared: bool = False

    def to(self, device: torch.device) -> "KeyLayout":
        """The same on another device."""
        source, positions, after = (send(item, device) for item in (self.source_BA, self.positions_BA, self.after_BA))
        until = None if self.until_BA is None else send(self.until_BA, device)
        return KeyLayout(source, positions, after, self.is_identity, until, self.is_shared)

    def tensors(self) -> list[Tensor]:
        """What is read of it."""
        until = [] if self.until_BA is None else [self.until_BA]
        return [self.positions_BA, self.after_BA, *until, *([] if self.is_identity else [self.source_BA])]

    def with_tensors(self, tensors: list[Tensor]) -> "KeyLayout":
        """The same with others in the place of `tensors`."""
        positions, after, *rest = tensors
        until = None if self.until_BA is None else rest.pop(0)
        return KeyLayout(rest.pop() if rest else self.source_BA, positions, after, self.is_identity, until, self.is_shared)

    def rows(self, rows_N: Tensor) -> "KeyLayout":
        """The given rows, in this order and as often as they are named."""

        def chosen(tensor: Tensor) -> Tensor:
            return tensor.index_select(0, rows_N.to(tensor.device))

        until = None if self.until_BA is None else chosen(self.until_BA)
        return KeyLayout(chosen(self.source_BA), chosen(self.positions_BA), chosen(self.after_BA), False, until, self.is_shared)

    def arrange(self, per_clip: Tensor) -> Tensor:
        """(C, K, A, d) keys or values of clips -> (B, K, A', d) of rows, (1, K, A', d) where all rows share them."""
        if self.is_identity:
            return per_clip
        num_clips, heads, num_tokens, size = per_clip.shape
        flat = per_clip.transpose(1, 2).reshape(num_clips * num_tokens, heads, size)
        return flat[self.source_BA[:1] if self.is_shared else self.source_BA].transpose(1, 2)

    @property
    def held_positions(self) -> Tensor:
        """Rotary positions of the keys that `arrange` gives."""
        return self.positions_BA[:1] if self.is_shared else self.positions_BA

    def visible(self, position_ids_BL: Tensor) -> Tensor:
        """(B, 1, L, A) bool: which text position sees which key."""
        visible = position_ids_BL[:, :, None] > self.after_BA[:, None, :]
        if self.until_BA is not None:
            visible = visible & (position_ids_BL[:, :, None] <= self.until_BA[:, None, :])
        return visible[:, None]


def lay_out(
    placement: Placement,
    lengths_C: Tensor,
    slots_C: Tensor,
    spans_C: Tensor,
    num_tokens: int,
    mode: str,
    summary_sees_audio: bool,
    only_last: bool = False,
    is_shared: bool = False,
    device: torch.device | None = None,
) -> KeyLayout:
    """Lay one stream's keys out in rows: clips of a row one after another, padded to the longest row.

    Args:
        placement: of the prompt.
        lengths_C: tokens of each clip in this stream.
        slots_C, spans_C: PLITS tokens and N of each clip.
        num_tokens: A of the stream's padded tokens.
        mode: "span" or "zero".
        summary_sees_audio: False hides a clip's keys from its own slots.
        only_last: a clip's keys are seen up to the next clip's marker; else by all text behind it.
        is_shared: see `same_in_every_row`.
        device: of the layout; None: that of what is given. Where rows are clips, no tensor of (B, A) travels there.
    """
    clips_BR = placement.clips_BR
    rows, columns = clips_BR.shape
    given, device = lengths_C.device, lengths_C.device if device is None else device
    until = None
    one_each = clips_BR.shape == (lengths_C.shape[0], 1) and torch.equal(clips_BR[:, 0], torch.arange(rows, device=given))
    if one_each:  # the common case: rows are clips and nothing moves
        marker_BA, lengths_C, slots_C, spans_C = (send(t, device) for t in (placement.markers_BR, lengths_C, slots_C, spans_C))
        source = torch.arange(rows * num_tokens, device=device).view(rows, num_tokens)
        valid = torch.arange(num_tokens, device=device) < lengths_C[:, None]
        slots_BA, place_BA = slots_C[:, None], spread(lengths_C, spans_C, num_tokens)
    else:
        lengths_BR = lengths_C[clips_BR.clamp(min=0)].masked_fill(clips_BR < 0, 0)
        ends = lengths_BR.cumsum(1)
        width = max(1, int(ends[:, -1].max()))
        column = torch.arange(width, device=given).expand(rows, width)
        slot = (column[:, :, None] >= ends[:, None, :]).sum(-1)
        valid = slot < columns
        slot = slot.clamp(max=columns - 1)
        clip_BA = clips_BR.gather(1, slot).clamp(min=0)
        token_BA = (column - (ends - lengths_BR).gather(1, slot)).clamp(0, num_tokens - 1)
        source = clip_BA * num_tokens + token_BA
        marker_BA = placement.markers_BR.gather(1, slot)
        if only_last:
            next_BR = placement.markers_BR.roll(-1, 1)
            next_BR[:, -1] = NOWHERE
            until = next_BR.gather(1, slot)
        slots_BA, place_BA = slots_C[clip_BA], spread(lengths_C, spans_C, max(1, num_tokens))[clip_BA, token_BA.clamp(min=0)]
    after = marker_BA if summary_sees_audio else marker_BA + slots_BA.masked_fill(marker_BA == NOWHERE, 0)
    if mode == "span":
        start = torch.where(valid, marker_BA, 0).float() + 1
        positions = (start + place_BA).masked_fill(~valid, 0.0)
    else:
        positions = torch.zeros(valid.shape, device=valid.device)
    # One clip for all rows: its keys are those of every row already.
    is_one = is_shared and len(lengths_C) == 1
    is_identity = one_each or (is_one and torch.equal(source[0], torch.arange(num_tokens, device=source.device)))
    after = torch.where(valid, after, NOWHERE)
    return KeyLayout(source, positions, after, is_identity, until, is_shared).to(device)
