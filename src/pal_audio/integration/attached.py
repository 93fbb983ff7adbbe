"""Audio placed in a prompt: rows, rotary positions, visibility. It is the context of the attention and of Flamingo blocks.

    AudioMemory or LiveAudio ── attach(prompt) ──► AttachedAudio ── keys, values, masks of each layer ──► attention

Shapes: B rows, C clips, A audio tokens, K key/value heads, d head width, L text tokens, D width.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pal_audio.errors import PalError
from pal_audio.integration.flamingo import BlockKey, FlamingoBlock, streams_of_the_last_clip
from pal_audio.integration.key_values import LayerKeyValues, compute_dtype
from pal_audio.integration.memory import AudioMemory, ClipTokens, LiveAudio
from pal_audio.integration.positions import UNKNOWN_TOKEN, KeyLayout, Placement, lay_out, place, same_in_every_row, text_positions
from pal_audio.integration.recompute import Recompute
from pal_audio.integration.training_attention import Bounds, StepKernel
from pal_audio.transfer import send

MAX_TURNED_BYTES = 2**28  # of keys that are rotated at once: bounds what stands beside them meanwhile


@dataclass
class AttachedAudio:
    """Audio placed in a prompt; the context that `attention.pal_attention` and the hooks of Flamingo blocks read.

    Made by `attach`; valid for every forward over that prompt (`prompt_BL`) and its continuation. `trusted` says that the
    caller is our own `generate`, whose texts and positions need no check in every step. `memory` is kept where rotated keys are
    not remembered (`attach(remember=False)`): each call then rotates them anew.
    """

    clips: ClipTokens
    placement: Placement
    audio_ids: tuple[int, int]
    layouts: list[KeyLayout]
    streams_of_layer: dict[int, tuple[int, ...]]
    rules: dict[int, LayerKeyValues]
    blocks: dict[BlockKey, FlamingoBlock]
    live: LiveAudio | None
    prompt_BL: Tensor
    trusted: bool = False
    memory: AudioMemory | None = None
    remembered: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    block_memory: dict[BlockKey, tuple[Tensor, Tensor]] = field(default_factory=dict)
    consumed: set[int] = field(default_factory=set)
    entered: set[BlockKey] = field(default_factory=set)
    kernel: StepKernel | None = None
    _bounds: dict[tuple[int, ...], Bounds] = field(default_factory=dict)
    _visible: dict[tuple[int, ...], Tensor] = field(default_factory=dict)
    _made: dict[tuple[tuple[int, ...], int], tuple[Tensor | None, Tensor]] = field(default_factory=dict)
    _rotary: dict[tuple[int, bool, str | None], tuple[Tensor, Tensor] | None] = field(default_factory=dict)

    @property
    def expected(self) -> frozenset[int]:
        return frozenset(self.streams_of_layer)

    @property
    def recompute(self) -> Recompute:
        return "none" if self.live is None else self.live.recompute

    def position_ids(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Position ids (B, L) of `input_ids`: a stretch of the prompt, or what follows it.

        The mask says which: it is as wide as everything up to the end of `input_ids`.
        """
        end, num_tokens = attention_mask.shape[1], input_ids.shape[1]
        if end <= self.prompt_BL.shape[1]:
            return self.placement.position_ids_BL[:, end - num_tokens : end]
        num_clips = (self.placement.clips_BR >= 0).sum(1)
        return text_positions(input_ids, attention_mask, self.audio_ids, self.placement.shifts_BR, num_clips)

    def check(self, input_ids: Tensor, end: int, new_clips: bool = False) -> None:
        """That `input_ids`, the tokens before column `end`, belong to the prompt that the clips were placed in.

        Raises:
            PalError: they are another prompt's, or hold a new clip behind it and `new_clips` are not looked for.
        """
        start, width = end - input_ids.shape[1], self.prompt_BL.shape[1]
        common = max(0, min(end, width) - start)
        known = self.prompt_BL[:, start : start + common]
        given = input_ids[:, :common].to(known.device)
        is_known = start >= 0 and known.shape == given.shape
        if is_known:
            is_known = torch.equal(known, given) or bool(((known == given) | (known == UNKNOWN_TOKEN)).all())
        if not is_known:
            raise PalError("this audio was attached to another prompt; attach its memory to this one")
        behind = input_ids[:, common:]
        if not new_clips and bool(((behind == self.audio_ids[0]) | (behind == self.audio_ids[1])).any()):
            raise PalError(
                "the text holds a new clip behind the prompt; give its sound beside the kept cache, "
                "or attach a memory of all clips to the whole text"
            )

    def begin(self, position_ids: Tensor, kernel: StepKernel | None = None) -> None:
        """Start one forward over text at `position_ids` (B, L); `kernel` of its LAL layers, where it is a training step.

        A forward without gradients attends without the kernel and leaves it to layers that another one computes again.
        """
        self.consumed, self.entered, self._made = set(), set(), {}
        per_stream = [layout.visible(position_ids) for layout in self.layouts]
        if self.live is not None and self.live.hidden:
            per_stream = [torch.zeros_like(mask) for mask in per_stream]
        # Made here and not on demand: a layer recomputed under checkpointing must find the same tensors.
        if torch.is_grad_enabled():
            self.kernel, self._bounds = kernel, {} if kernel is None else self.bounds(position_ids)
        if self.live is not None or self.memory is not None:
            for layer, streams in self.streams_of_layer.items():
                for stream in streams:
                    self._tables(self.rules[layer], stream)
        groups = {*self.streams_of_layer.values(), *((stream,) for stream, _ in self.blocks)}
        self._visible = {
            group: torch.cat([per_stream[stream] for stream in group], dim=-1) if len(group) > 1 else per_stream[group[0]]
            for group in groups
        }

    def begin_anew(self, position_ids: Tensor) -> None:
        """`begin` where what the prompt's tensors hold has changed."""
        self._rotary = {}
        self.begin(position_ids)

    def visible(self, layer: int) -> Tensor:
        return self._visible[self.streams_of_layer[layer]]

    def heard(self, layer: int) -> Bounds:
        return self._bounds[self.streams_of_layer[layer]]

    def bounds(self, position_ids: Tensor | None = None) -> dict[tuple[int, ...], Bounds]:
        """For the streams of each LAL layer, what `visible` follows from.

        Args:
            position_ids: of text (B, L); None: those of the whole prompt.
        """
        assert all(self.layouts[s].until_BA is None for group in self.streams_of_layer.values() for s in group)
        last = torch.iinfo(torch.int32).max
        positions_BL = (self.placement.position_ids_BL if position_ids is None else position_ids).to(torch.int32)
        is_hidden = self.live is not None and self.live.hidden
        made = {}
        for group in set(self.streams_of_layer.values()):
            after_BA = torch.cat([self.layouts[s].after_BA for s in group], dim=1).clamp(max=last).to(torch.int32)
            if is_hidden:
                after_BA = torch.full_like(after_BA, last)
            made[group] = positions_BL, after_BA, after_BA.amin(1)
        return made

    def once(self, layer: int, text_mask: Tensor | None, make: Callable[[], Tensor]) -> Tensor:
        """See `attention.AudioContext`. A compiler finds such repetitions itself, and tensors kept here would leave its graph."""
        if torch.compiler.is_compiling():
            return make()
        key = self.streams_of_layer[layer], id(text_mask)
        if key not in self._made:
            self._made[key] = text_mask, make()  # the text mask is kept, so that no other one gets its id
        return self._made[key][1]

    def block_visible(self, key: BlockKey) -> Tensor:
        return self._visible[key[:1]]

    def block_keys_values(self, key: BlockKey) -> tuple[Tensor, Tensor]:
        pair = self.block_memory.get(key)
        if pair is None and self.memory is not None:
            pair = self._block_of_memory(self.memory, key)
        if pair is not None:
            keys, values = (side.expand(len(self.prompt_BL), -1, -1, -1) for side in pair)
            return keys, values
        assert self.live is not None
        return self._arranged(key[0], *self.live.keys_values(self.blocks[key], key[0]))

    def keys_values(self, layer: int) -> tuple[Tensor, Tensor]:
        if layer in self.remembered:
            return self.remembered[layer]
        rule = self.rules[layer]
        if self.memory is not None:
            return self._of_memory(self.memory, layer)
        assert self.live is not None
        pairs = []
        for stream in self.streams_of_layer[layer]:
            keys, values = self.live.keys_values(rule, stream)
            pairs.append(self._placed(rule, stream, keys, values))
        return _join(pairs)

    def remember(self, memory: AudioMemory) -> None:
        """Rotate and arrange a memory's keys and values for this prompt, once for all steps."""
        keys = {(stream, layer): keys for stream in range(len(self.layouts)) for layer, keys in self._turned(memory, stream)}
        self.remembered = {
            layer: _join([(keys[s, layer], self.layouts[s].arrange(memory.values[s][layer])) for s in streams])
            for layer, streams in self.streams_of_layer.items()
        }

    def _turned(self, memory: AudioMemory, stream: int) -> Iterator[tuple[int, Tensor]]:
        """A stream's arranged and rotated keys of each layer; layers that rotate alike do so together, as heads of one tensor."""
        layers = [layer for layer, streams in self.streams_of_layer.items() if stream in streams]
        alike: dict[tuple[bool, str | None], list[int]] = {}
        for layer in layers:
            alike.setdefault((self.rules[layer].uses_rotary, self.rules[layer].rope_layer_type), []).append(layer)
        for members in alike.values():
            rule, arranged = self.rules[members[0]], [self.layouts[stream].arrange(memory.keys[stream][n]) for n in members]
            at_once = max(1, MAX_TURNED_BYTES // max(1, arranged[0].nbytes))
            for first in range(0, len(members), at_once):
                part = arranged[first : first + at_once]
                joint = rule.rotate(torch.cat(part, dim=1) if len(part) > 1 else part[0], self._tables(rule, stream))
                yield from zip(members[first:], joint.split([keys.shape[1] for keys in part], dim=1), strict=False)

    def remember_all(self) -> None:
        """Remember rotated keys also where `attach` did not."""
        if self.memory is not None:
            self.remember(self.memory)
            self.remember_blocks(self.memory)
            self.memory = None

    def remember_blocks(self, memory: AudioMemory) -> None:
        """Arrange a memory's keys and values of Flamingo blocks."""
        for key in self.blocks:
            self.block_memory[key] = self._block_of_memory(memory, key)

    def _block_of_memory(self, memory: AudioMemory, key: BlockKey) -> tuple[Tensor, Tensor]:
        stream, layer = key
        return self._arranged(stream, memory.keys[stream][layer], memory.values[stream][layer])

    def _of_memory(self, memory: AudioMemory, layer: int) -> tuple[Tensor, Tensor]:
        rule, streams = self.rules[layer], self.streams_of_layer[layer]
        return _join([self._placed(rule, s, memory.keys[s][layer], memory.values[s][layer]) for s in streams])

    def as_kept(self, layer: int) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        """Keys, values and the tables that still have to turn the keys: the memory's own tensors where nothing moves them.

        Elsewhere keys are rotated, and there is no table. See `integration.decode_kernel`.
        """
        rule, streams = self.rules[layer], self.streams_of_layer[layer]
        if self.memory is not None and len(streams) == 1 and self.layouts[streams[0]].is_identity:
            keys, values = self.memory.keys[streams[0]][layer], self.memory.values[streams[0]][layer]
            if not rule.uses_rotary:
                return keys, values, None
            if rule.turns_halves:
                return keys, values, self._tables(rule, streams[0])
        return *self.keys_values(layer), None

    def _arranged(self, stream: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return self.layouts[stream].arrange(keys), self.layouts[stream].arrange(values)

    def _placed(self, rule: LayerKeyValues, stream: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self._arranged(stream, keys, values)
        return rule.rotate(keys, self._tables(rule, stream)), values

    def _tables(self, rule: LayerKeyValues, stream: int) -> tuple[Tensor, Tensor] | None:
        """cos and sin of a stream's keys, made once for all layers that rotate alike."""
        key = stream, rule.uses_rotary, rule.rope_layer_type
        if key not in self._rotary:
            like = self.placement.position_ids_BL.new_empty(0, dtype=compute_dtype(rule.layer))
            self._rotary[key] = rule.rotary_tables(like, self.layouts[stream].held_positions)
        return self._rotary[key]

    def embed(self, input_ids: Tensor, position_ids: Tensor, embeddings_BLD: Tensor, marker_D: Tensor) -> Tensor:
        """Put the marker's vector and the clips' PLITS tokens into the embedded text.

        A slot finds its clip and its number within the clip by its position id alone.
        """
        marker_id, slot_id = self.audio_ids
        dtype = embeddings_BLD.dtype
        embeddings_BLD = torch.where((input_ids == marker_id)[..., None], marker_D.to(dtype), embeddings_BLD)
        slots_CAD = self.clips.slots_CAD
        if slots_CAD is None:
            return embeddings_BLD
        if self.live is not None and self.live.hidden:
            return embeddings_BLD + 0.0 * slots_CAD.sum().to(dtype)
        markers_BR = self.placement.markers_BR
        which = ((markers_BR[:, None, :] < position_ids[:, :, None]).sum(-1) - 1).clamp(min=0)
        clips = self.placement.clips_BR.gather(1, which).clamp(min=0)
        number = (position_ids - markers_BR.gather(1, which) - 1).clamp(0, slots_CAD.shape[1] - 1)
        tokens_BLD = slots_CAD[clips, number].to(dtype)
        return torch.where((input_ids == slot_id)[..., None], tokens_BLD, embeddings_BLD)

    # ---- prompts that share code and a CUDA graph: what changes from one to the next ----

    def prompt_tensors(self) -> list[Tensor]:
        """The small tensors by which this prompt differs from another one over the same memory, beside its token ids."""
        return [*vars(self.placement).values(), *(tensor for layout in self.layouts for tensor in layout.tensors())]

    def with_prompt_tensors(self, prompt_BL: Tensor, tensors: list[Tensor]) -> "AttachedAudio":
        """The same with other tensors in the place of `prompt_tensors`; nothing is remembered."""
        rest = iter(tensors)
        placement = Placement(*(next(rest) for _ in vars(self.placement)))
        layouts = [layout.with_tensors([next(rest) for _ in layout.tensors()]) for layout in self.layouts]
        return replace(
            self, placement=placement, layouts=layouts, prompt_BL=prompt_BL, trusted=True, remembered={}, block_memory={},
            consumed=set(), entered=set(), kernel=None, _bounds={}, _visible={}, _made={}, _rotary={},
        )  # fmt: skip

    def kinds(self) -> tuple[tuple[bool, bool], ...]:
        """How keys are laid out, by which code differs."""
        return tuple((layout.is_identity, layout.is_shared) for layout in self.layouts)

    def expand(self, times: int) -> "AttachedAudio":
        """Repeat every row for beams or several returns. Beams only permute within a prompt, so nothing is ever reordered."""
        return self.select(torch.arange(self.prompt_BL.shape[0], device=self.prompt_BL.device).repeat_interleave(times))

    def select(self, rows_N: Tensor) -> "AttachedAudio":
        """The given rows, in this order and as often as they are named: several continuations of one prompt share its audio."""

        def rows(tensor: Tensor) -> Tensor:
            return tensor.index_select(0, rows_N.to(tensor.device))  # the prompt may lie elsewhere than what was placed in it

        placement = Placement(*(rows(tensor) for tensor in vars(self.placement).values()))
        layouts = [layout.rows(rows_N) for layout in self.layouts]

        self.remember_all()

        def held(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return pair if pair[0].shape[0] == 1 else (rows(pair[0]), rows(pair[1]))  # what all rows share stays as it is

        remembered = {layer: held(pair) for layer, pair in self.remembered.items()}
        block_memory = {key: held(pair) for key, pair in self.block_memory.items()}
        return replace(
            self,
            placement=placement,
            layouts=layouts,
            remembered=remembered,
            block_memory=block_memory,
            prompt_BL=rows(self.prompt_BL),
            consumed=set(),
            entered=set(),
            kernel=None,
            _bounds={},
            _visible={},
            _made={},
            _rotary={},
        )


def attach(
    audio: AudioMemory | LiveAudio,
    input_ids: Tensor,
    attention_mask: Tensor,
    audio_ids: tuple[int, int],
    rules: dict[int, LayerKeyValues],
    blocks: dict[BlockKey, FlamingoBlock],
    layers: list[frozenset[int]],
    mode: str,
    device: torch.device,
    summary_sees_audio: bool = True,
    max_positions: int | None = None,
    placement: Placement | None = None,
    remember: bool = True,
) -> AttachedAudio:
    """Place clips in a full prompt: worked out on the CPU, but what has the size of the audio is made on the model's device.

    Args:
        audio: clips in reading order of the batch's markers.
        input_ids, attention_mask: (B, L) the full prompt; where they are on the CPU, nothing waits for the accelerator.
        audio_ids: marker id and slot id.
        rules: key/value path of each LAL layer.
        blocks: Flamingo blocks by key stream and layer.
        layers: layers of each key stream.
        mode: "span" or "zero".
        device: the model's.
        summary_sees_audio: False hides a clip's keys from its own slots.
        max_positions: that audio and text may take, or None if nothing bounds them.
        placement: where the clips stand, if it is known already (`extension`).
        remember: arrange and rotate keys once for all steps; else the memory is kept and it is done where they are asked for.

    Raises:
        PalError: markers, slots and clips do not match, or positions run past the LLM's context.
    """
    clips = audio.clips
    prompt_BL, input_ids, attention_mask = input_ids, input_ids.cpu(), attention_mask.cpu()
    hidden = isinstance(audio, LiveAudio) and audio.hidden
    if hidden:  # no text refers to the dummy clip: it stands in row 0 behind everything
        placement = place(input_ids, attention_mask, audio_ids, clips.num_slots_C[:0], clips.spans_C[:0], mode)
        rows = input_ids.shape[0]
        clips_BR = torch.zeros(rows, 1, dtype=torch.int64, device=input_ids.device)
        placement = replace(placement, clips_BR=clips_BR, markers_BR=clips_BR, shifts_BR=clips_BR)
    elif placement is None:
        order = audio.order if isinstance(audio, AudioMemory) and audio.order is not None else torch.arange(clips.num_clips)
        placement = place(input_ids, attention_mask, audio_ids, clips.num_slots_C[order], clips.spans_C[order], mode)
        if clips.num_clips:
            clips_BR = order[placement.clips_BR.clamp(min=0)].masked_fill(placement.clips_BR < 0, -1)
            placement = replace(placement, clips_BR=clips_BR)
    is_shared = isinstance(audio, AudioMemory) and same_in_every_row(placement, mode)
    check_context(placement, clips, mode, max_positions)
    only_last = streams_of_the_last_clip(blocks)
    of_clips = clips.num_slots_C, clips.spans_C
    layouts = [
        lay_out(placement, lengths, *of_clips, width, mode, summary_sees_audio, stream in only_last, is_shared, device)
        for stream, (lengths, width) in enumerate(zip(clips.num_keys_SC, audio.widths, strict=True))
    ]
    by_lal = [(layer, stream) for stream, chosen in enumerate(layers) for layer in chosen if (stream, layer) not in blocks]
    streams_of_layer = {layer: tuple(s for other, s in by_lal if other == layer) for layer in sorted({n for n, _ in by_lal})}
    live = audio if isinstance(audio, LiveAudio) else None
    placed = placement.to(device)
    prompt_BL = send(prompt_BL, device)
    attached = AttachedAudio(clips, placed, audio_ids, layouts, streams_of_layer, rules, blocks, live, prompt_BL)
    if isinstance(audio, AudioMemory):
        attached.memory = audio
        if remember:
            attached.remember_all()
    return attached


def check_context(placement: Placement, clips: ClipTokens, mode: str, max_positions: int | None) -> None:
    """That no position runs past the LLM's context.

    Raises:
        PalError: one does.
    """
    if max_positions is None or not placement.markers_BR.numel():
        return
    last_text = placement.position_ids_BL.max()
    if mode == "zero":
        if int(last_text) >= max_positions:
            raise PalError(
                f"positions: audio slots and text take {int(last_text) + 1} positions but the LLM has {max_positions}; "
                "use shorter text or, with PLITS, a connector with fewer tokens"
            )
        return
    spans_BR = clips.spans_C[placement.clips_BR.clamp(min=0)].masked_fill(placement.clips_BR < 0, 0)
    markers_BR = placement.markers_BR.masked_fill(placement.clips_BR < 0, 0)
    needed = int(torch.maximum(last_text, (markers_BR + spans_BR).max())) + 1
    if needed > max_positions:
        raise PalError(
            f"positions: audio and text span {needed} positions but the LLM was trained on {max_positions}; "
            "use `positions: zero`, a connector with fewer tokens, or shorter clips"
        )


def _join(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    if len(pairs) == 1:
        return pairs[0]
    return torch.cat([keys for keys, _ in pairs], dim=2), torch.cat([values for _, values in pairs], dim=2)
