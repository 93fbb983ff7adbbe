"""Examples -> model inputs.

Features of clips and tokens of texts are kept while memory allows: small runs see every clip many times, all runs every wording.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from pal_audio.audio import AudioError, header_seconds
from pal_audio.data.frame_cache import FrameCache
from pal_audio.data.manifest import AudioPart, Example
from pal_audio.encoders.base import length_mask
from pal_audio.model import ClipFeatures, PalProcessor

_KEPT_TOKENS = 2**23  # 64 MiB with their labels

Row = tuple[torch.Tensor, torch.Tensor]
"""Token ids and labels of an example, (L,) int32 each."""


class Collator:
    """Batches of examples, with labels on the assistant's tokens.

    Args:
        processor: the model's.
        keep_bytes: features of clips are kept in memory up to this (float32; a clip of 3 s takes about 80 kB with 64 mel bins,
            190 kB as samples).
        frames: of frozen encoders, read anew each time instead of sound; nothing is kept then.
        skip_unreadable: an example with a clip that cannot be read teaches nothing, with a warning, instead of being an error.
    """

    def __init__(
        self,
        processor: PalProcessor,
        keep_bytes: int = 4 << 30,
        frames: FrameCache | None = None,
        skip_unreadable: bool = False,
    ) -> None:
        self.processor = processor
        self.skip_unreadable = skip_unreadable
        self.unreadable: dict[tuple[str, float | None, float | None], str] = {}
        self.frames = frames
        self.keep_bytes = keep_bytes
        self._kept_bytes = 0
        self._clips: dict[tuple[str, float | None, float | None], ClipFeatures] = {}
        self._rows: dict[Any, Row] = {}
        self._num_kept_tokens = 0
        self._slots: dict[tuple[int, ...], int] = {}  # by samples

    def shared_by(self, num_workers: int) -> "Collator":
        """A copy for each of so many processes: it has kept nothing yet, and will keep its share."""
        return Collator(self.processor, self.keep_bytes // num_workers, self.frames, self.skip_unreadable)

    def clip(self, part: AudioPart) -> ClipFeatures:
        """Features of one clip of a manifest, or its frames."""
        if self.frames is not None:
            return ClipFeatures(self.frames.read(part), self.frames.num_samples(part))
        key = (part.path, part.start_s, part.end_s)
        if key in self._clips:
            return self._clips[key]
        try:
            if part.content is not None:  # of a stream: it comes again in an epoch, and memory must not grow until then
                return self.processor.clip({"bytes": part.content, "path": part.path}, start_s=part.start_s, end_s=part.end_s)
            clip = self.processor.clip(part.path, start_s=part.start_s, end_s=part.end_s)
        except AudioError as error:
            return self._left_out(key, error)
        num_bytes = sum(item.nbytes for item in clip.features.values() if isinstance(item, torch.Tensor))
        if self._kept_bytes + num_bytes <= self.keep_bytes:
            self._kept_bytes += num_bytes
            self._clips[key] = clip
        return clip

    def _left_out(self, key: tuple[str, float | None, float | None], error: AudioError) -> ClipFeatures:
        """A moment of silence in the place of a clip that cannot be read; its example is not supervised."""
        if not self.skip_unreadable:
            raise error
        if key not in self.unreadable:
            warnings.warn(f"{error}; its example teaches nothing", stacklevel=2)
            self.unreadable[key] = str(error)
        silence = np.zeros(1, dtype=np.float32)
        features = {name: front_end(silence) for name, front_end in self.processor.front_ends.items()}
        return ClipFeatures(features, dict.fromkeys(features, 1))

    def seconds(self, example: Example) -> float:
        """Seconds of an example's clips: what batches are grouped by. Read from headers, or from the cache."""
        if self.frames is None:
            return sum(self._header_seconds(part) for part in example.audio)
        name, encoder = next(iter(self.processor._audio.encoders.items()))
        return sum(self.frames.num_samples(part)[name] for part in example.audio) / encoder.sampling_rate_hz

    def _header_seconds(self, part: AudioPart) -> float:
        try:
            return header_seconds(part.path if part.content is None else part.content, part.start_s, part.end_s)
        except AudioError:
            if not self.skip_unreadable:
                raise
            return 0.0

    def num_tokens(self, example: Example) -> int:
        """Tokens of an example's text, with markers and slots."""
        return len(self._row(example, [self.clip(part) for part in example.audio])[0])

    def training_batch(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Inputs and labels, padded right."""
        clips = [[self.clip(part) for part in example.audio] for example in examples]
        rows = [self._row(example, of_example) for example, of_example in zip(examples, clips, strict=True)]
        lengths_B = torch.tensor([len(ids_L) for ids_L, _ in rows])
        ids_BL = pad_sequence([ids_L for ids_L, _ in rows], batch_first=True, padding_value=self.processor._pad_id)
        labels_BL = pad_sequence([labels_L for _, labels_L in rows], batch_first=True, padding_value=-100)
        mask_BL = length_mask(lengths_B, ids_BL.shape[1])
        batch: dict[str, Any] = {"input_ids": ids_BL.long(), "attention_mask": mask_BL.long(), "labels": labels_BL.long()}
        if any(clips):
            batch |= self.processor.collate_clips([clip for of_example in clips for clip in of_example])
        for row, example in enumerate(examples if self.unreadable else ()):
            if any((part.path, part.start_s, part.end_s) in self.unreadable for part in example.audio):
                batch["labels"][row] = -100
        return batch

    def _row(self, example: Example, clips: Sequence[ClipFeatures]) -> Row:
        """Tokens of an example with markers and slots. They depend on its words and on how many slots each clip takes."""
        num_slots = [self._num_slots(clip) for clip in clips]
        slots = iter(num_slots)
        parts = [
            [min(next(slots), 1) if isinstance(part, AudioPart) else part.text for part in item.parts]
            for item in example.messages
        ]
        key = tuple((message.role, *written) for message, written in zip(example.messages, parts, strict=True))
        if key in self._rows:
            return self._with_slots(self._rows[key], num_slots)
        # Sound of one number: only its length is looked at.
        silent = iter([ClipFeatures(dict.fromkeys(clip.features, torch.zeros(1, 1)), clip.num_samples) for clip in clips])
        conversation = self._messages(example, lambda _: next(silent), answered=True)
        inputs = self.processor.apply_chat_template(conversation, return_labels=True)
        ids_L, labels_L = inputs["input_ids"][0].int(), inputs["labels"][0].int()
        is_slot_L = ids_L == self.processor.audio_slot_token_id
        kept_L = ~is_slot_L
        kept_L[1:] |= is_slot_L[1:] & ~is_slot_L[:-1]  # the first slot of each clip, which stands behind its marker
        kept = ids_L[kept_L], labels_L[kept_L]
        if self._num_kept_tokens + len(kept[0]) <= _KEPT_TOKENS:
            self._num_kept_tokens += len(kept[0])
            self._rows[key] = kept
        return ids_L, labels_L

    def _with_slots(self, row: Row, num_slots: list[int]) -> Row:
        """A row with one slot a clip as the row in which each clip has its number of them."""
        if max(num_slots, default=0) <= 1:
            return row
        ids_L, labels_L = row
        repeats_L = torch.ones_like(ids_L)
        repeats_L[ids_L == self.processor.audio_slot_token_id] = torch.tensor(
            [num for num in num_slots if num], dtype=torch.int32
        )
        return ids_L.repeat_interleave(repeats_L), labels_L.repeat_interleave(repeats_L)

    def _num_slots(self, clip: ClipFeatures) -> int:
        key = tuple(clip.num_samples.values())
        if key not in self._slots:
            self._slots[key] = self.processor.num_slots(clip)
        return self._slots[key]

    def prompt_batch(self, examples: Sequence[Example], muted: bool = False) -> dict[str, torch.Tensor]:
        """Inputs to generate from, padded left; `muted` replaces every clip by silence of its length."""
        hear = (lambda part: self._silence(self.clip(part))) if muted else self.clip
        conversations = [self._messages(example, hear, answered=False) for example in examples]
        return dict(self.processor.apply_chat_template(conversations, add_generation_prompt=True))

    def _messages(self, example: Example, hear: Callable[[AudioPart], ClipFeatures], answered: bool) -> list[dict[str, Any]]:
        messages = []
        for message in example.messages if answered else example.prompt:
            content: list[dict[str, Any]] = []
            for part in message.parts:
                if isinstance(part, AudioPart):
                    content.append({"type": "audio", "audio": hear(part)})
                else:
                    content.append({"type": "text", "text": part.text})
            messages.append({"role": message.role, "content": content})
        return messages

    def _silence(self, clip: ClipFeatures) -> ClipFeatures:
        features = {
            name: self.processor.front_ends[name](np.zeros(num_samples, dtype=np.float32))
            for name, num_samples in clip.num_samples.items()
        }
        return ClipFeatures(features, clip.num_samples)
