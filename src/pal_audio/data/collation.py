"""Examples -> model inputs. Features of clips are kept while memory allows, since small runs see every clip many times."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pal_audio.audio import header_seconds
from pal_audio.data.frame_cache import FrameCache
from pal_audio.data.manifest import AudioPart, Example
from pal_audio.model import ClipFeatures, PalProcessor


class Collator:
    """Batches of examples, with labels on the assistant's tokens.

    Args:
        processor: the model's.
        keep_bytes: features of clips are kept in memory up to this (float32; a clip of 3 s takes about 80 kB with 64 mel bins).
        frames: of frozen encoders, read anew each time instead of sound; nothing is kept then.
    """

    def __init__(self, processor: PalProcessor, keep_bytes: int = 4 << 30, frames: FrameCache | None = None) -> None:
        self.processor = processor
        self.frames = frames
        self.keep_bytes = keep_bytes
        self._kept_bytes = 0
        self._clips: dict[tuple[str, float | None, float | None], ClipFeatures] = {}

    def clip(self, part: AudioPart) -> ClipFeatures:
        """Features of one clip of a manifest, or its frames."""
        if self.frames is not None:
            return ClipFeatures(self.frames.read(part), self.frames.num_samples(part))
        if part.content is not None:  # of a stream: it comes again in an epoch, and memory must not grow until then
            return self.processor.clip({"bytes": part.content, "path": part.path}, start_s=part.start_s, end_s=part.end_s)
        key = (part.path, part.start_s, part.end_s)
        if key in self._clips:
            return self._clips[key]
        clip = self.processor.clip(part.path, start_s=part.start_s, end_s=part.end_s)
        num_bytes = sum(item.nbytes for item in clip.features.values() if isinstance(item, torch.Tensor))
        if self._kept_bytes + num_bytes <= self.keep_bytes:
            self._kept_bytes += num_bytes
            self._clips[key] = clip
        return clip

    def seconds(self, example: Example) -> float:
        """Seconds of an example's clips: what batches are grouped by. Read from headers, or from the cache."""
        if self.frames is None:
            return sum(
                header_seconds(part.path if part.content is None else part.content, part.start_s, part.end_s)
                for part in example.audio
            )
        name, encoder = next(iter(self.processor._audio.encoders.items()))
        return sum(self.frames.num_samples(part)[name] for part in example.audio) / encoder.sampling_rate_hz

    def num_tokens(self, example: Example) -> int:
        """Tokens of an example's text, with markers and slots."""
        conversation = self._messages(example, muted=False, answered=True)
        text = self.processor.apply_chat_template(conversation, tokenize=False)
        num_slots = sum(self.processor.num_slots(self.clip(part)) for part in example.audio)
        return len(self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]) + num_slots

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
