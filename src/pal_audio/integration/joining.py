"""Memories put together: several memories' clips in one, and a clip that goes on.

Shapes: C clips, A audio tokens, K key/value heads, d head width, D width, S LAL streams.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pal_audio.errors import PalError

if TYPE_CHECKING:
    from pal_audio.integration.memory import AudioMemory, ClipTokens


def concatenate_clips(parts: Sequence["ClipTokens"]) -> "ClipTokens":
    """The clips of all parts, one part after another; PLITS tokens padded to the longest."""
    slots = [part.slots_CAD for part in parts if part.slots_CAD is not None]
    assert len(slots) in (0, len(parts)), "some parts have PLITS tokens and others none"
    return replace(
        parts[0],
        slots_CAD=_stack(slots, 1) if slots else None,
        num_slots_C=torch.cat([part.num_slots_C for part in parts]),
        num_keys_SC=torch.cat([part.num_keys_SC for part in parts], 1),
        spans_C=torch.cat([part.spans_C for part in parts]),
    )


def concatenate(memories: Sequence["AudioMemory"]) -> "AudioMemory":
    """The clips of all memories in one, in this order.

    Raises:
        PalError: there is none, two are of different models or devices, or one is shared already.
    """
    if not memories:
        raise PalError("concatenate: no memory was given")
    if len(memories) > 1 and any(memory.order is not None for memory in memories):
        raise PalError("concatenate: a memory is shared already; concatenate first, then share")
    first = memories[0]
    for number, memory in enumerate(memories[1:], 1):
        check_same_model(first, memory, f"concatenate: memory {number}")
    if len(memories) == 1:
        return first
    streams = range(len(first.widths))

    def sides(name: str) -> list[dict[int, Tensor]]:
        per_memory = [getattr(memory, name) for memory in memories]
        return [{layer: _stack([side[s][layer] for side in per_memory], 2) for layer in per_memory[0][s]} for s in streams]

    return replace(
        first,
        clips=concatenate_clips([memory.clips for memory in memories]),
        keys=sides("keys"),
        values=sides("values"),
        widths=[max(memory.widths[s] for memory in memories) for s in streams],
        samples={name: torch.cat([memory.samples[name] for memory in memories]) for name in first.samples},
    )


def append(memory: "AudioMemory", chunk: "AudioMemory", clip: int, takes_span_S: Sequence[bool]) -> "AudioMemory":
    """One clip goes on by a chunk's tokens; what is there is copied as it is.

    Args:
        memory: of C clips.
        chunk: of one clip; whether it may follow is the caller's to know (`model.streaming`).
        clip: which clip goes on, 0 .. C-1.
        takes_span_S: of each key stream, whether its tokens count for a clip's span (those of Flamingo blocks do not).
    """
    assert chunk.num_clips == 1
    check_same_model(memory, chunk, "append: the chunk")
    old, new = memory.clips, chunk.clips
    num_keys_SC, num_slots_C = old.num_keys_SC.clone(), old.num_slots_C.clone()
    num_keys_SC[:, clip] += new.num_keys_SC[:, 0]
    num_slots_C[clip] += new.num_slots_C[0]
    every = [num_slots_C[clip], *(keys_C[clip] for keys_C, counts in zip(num_keys_SC, takes_span_S, strict=True) if counts)]
    spans_C = old.spans_C.clone()
    spans_C[clip] = torch.stack(every).max()
    slots_CAD = None
    if old.slots_CAD is not None:
        assert new.slots_CAD is not None
        slots_CAD = _continue(old.slots_CAD, new.slots_CAD, clip, old.num_slots_C, new.num_slots_C, 1)
    sides: dict[str, list[dict[int, Tensor]]] = {}
    for name in ("keys", "values"):
        ours, theirs = getattr(memory, name), getattr(chunk, name)
        sides[name] = [
            {
                layer: _continue(ours[s][layer], theirs[s][layer], clip, old.num_keys_SC[s], new.num_keys_SC[s], 2)
                for layer in ours[s]
            }
            for s in range(len(ours))
        ]
    samples = {name: tensor.clone() for name, tensor in memory.samples.items()}
    for name, tensor in samples.items():
        tensor[clip] += chunk.samples[name][0]
    clips = replace(old, slots_CAD=slots_CAD, num_slots_C=num_slots_C, num_keys_SC=num_keys_SC, spans_C=spans_C)
    widths = [max(width, int(num_keys_SC[s, clip])) for s, width in enumerate(memory.widths)]
    return replace(memory, clips=clips, widths=widths, samples=samples, keys=sides["keys"], values=sides["values"])


def check_same_model(memory: "AudioMemory", other: "AudioMemory", who: str) -> None:
    if other.fingerprint != memory.fingerprint:
        raise PalError(f"{who} was made by another model (or before its weights changed); encode the audio again")
    if other.device != memory.device:
        raise PalError(f"{who} is on {other.device}, the first memory on {memory.device}; move it with `to`")


def _stack(tensors: list[Tensor], axis: int) -> Tensor:
    """Clips of all tensors along axis 0, padded with zeros on `axis` to the widest."""
    width = max(tensor.shape[axis] for tensor in tensors)
    return torch.cat([_padded(tensor, width, axis) for tensor in tensors])


def _padded(tensor: Tensor, width: int, axis: int) -> Tensor:
    missing = width - tensor.shape[axis]
    return nn.functional.pad(tensor, [0, 0] * (tensor.ndim - axis - 1) + [0, missing]) if missing else tensor


def _continue(tensor: Tensor, chunk: Tensor, clip: int, lengths_C: Tensor, chunk_length_1: Tensor, axis: int) -> Tensor:
    start, num_new = int(lengths_C[clip]), int(chunk_length_1[0])
    longer = _padded(tensor, max(tensor.shape[axis], start + num_new), axis)
    longer = longer.clone() if longer is tensor else longer
    longer[clip].narrow(axis - 1, start, num_new).copy_(chunk[0].narrow(axis - 1, 0, num_new))
    return longer
