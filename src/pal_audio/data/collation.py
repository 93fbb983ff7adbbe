"""Examples -> model inputs. Features of a clip are computed once and kept, since small runs see every clip many times."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pal_audio.data.frame_cache import FrameCache
from pal_audio.data.manifest import AudioPart, Example
from pal_audio.model import ClipFeatures, PalProcessor


class Collator:
    """Batches of examples, with labels on the assistant's tokens.

    Args:
        processor: the model's.
        keep: keep the features of every clip in memory (float32; a clip of 3 s takes about 80 kB with 64 mel bins).
        frames: of frozen encoders, read anew each time instead of sound; nothing is kept then.
    """

    def __init__(self, processor: PalProcessor, keep: bool = True, frames: FrameCache | None = None) -> None:
        self.processor = processor
        self.frames = frames
        self.keep = keep
        self._clips: dict[tuple[str, float | None, float | None], ClipFeatures] = {}

    def clip(self, part: AudioPart) -> ClipFeatures:
        """Features of one clip of a manifest, or its frames."""
        if self.frames is not None:
            return ClipFeatures(self.frames.read(part), self.frames.num_samples(part))
        if part.content is not None:  # of a stream: it comes again in an epoch, and memory must not grow until then
            return self.processor.clip({"bytes": part.content, "path": part.path}, start_s=part.start_s, end_s=part.end_s)
        key = (part.path, part.start_s, part.end_s)
        if key not in self._clips:
            clip = self.processor.clip(part.path, start_s=part.start_s, end_s=part.end_s)
            if not self.keep:
                return clip
            self._clips[key] = clip
        return self._clips[key]

    def num_samples(self, example: Example) -> int:
        """Samples of an example's clips at the first encoder's rate: what batches are grouped by."""
        return sum(next(iter(self._num_samples(part).values())) for part in example.audio)

    def _num_samples(self, part: AudioPart) -> dict[str, int]:
        return self.clip(part).num_samples if self.frames is None else self.frames.num_samples(part)

    def training_batch(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Inputs and labels, padded right."""
        conversations = [self._messages(example, muted=False, answered=True) for example in examples]
        return dict(self.processor.apply_chat_template(conversations, return_labels=True))

    def prompt_batch(self, examples: Sequence[Example], muted: bool = False) -> dict[str, torch.Tensor]:
        """Inputs to generate from, padded left; `muted` replaces every clip by silence of its length."""
        conversations = [self._messages(example, muted=muted, answered=False) for example in examples]
        return dict(self.processor.apply_chat_template(conversations, add_generation_prompt=True))

    def _messages(self, example: Example, muted: bool, answered: bool) -> list[dict[str, Any]]:
        messages = []
        for message in example.messages if answered else example.prompt:
            content: list[dict[str, Any]] = []
            for part in message.parts:
                if isinstance(part, AudioPart):
                    clip = self.clip(part)
                    content.append({"type": "audio", "audio": self._silence(clip) if muted else clip})
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
