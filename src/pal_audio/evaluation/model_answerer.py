"""A PAL model as an answerer: sound becomes one audio memory a batch, and every question and choice about it shares that memory.

    hear ── features (or cached frames) ── listen ── encode_audio ── memory ─┬─ generate: greedy
                                                                             └─ rank: prompt once, choices on its cache

Ranking runs the prompts once, keeps their cache, and continues it by the choices. The score of a choice is the mean
log-probability of its tokens, those that the chat template writes around an answer (end of turn) included.

Shapes: B prompts, N rows (pairs of prompt and choice), L tokens.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pal_audio.audio import AudioError, load_audio
from pal_audio.data.frame_cache import FrameCache
from pal_audio.data.manifest import AudioPart, Message
from pal_audio.errors import PalError
from pal_audio.integration.fingerprint import fingerprint
from pal_audio.integration.key_values import max_span
from pal_audio.integration.memory import AudioMemory
from pal_audio.model import ClipFeatures, PalForConditionalGeneration, PalProcessor

PAUSE_S = 0.2  # between the stretches of a joined clip
NOISE_RMS = 0.05
ROWS_PER_PROMPT = 4  # pairs of prompt and choice in one pass, as a multiple of the batch
_ANSWER = "answer"  # stands for an answer while the template's text around it is found
_OF_THE_PLACE = ("_name_or_path", "transformers_version")  # of a configuration: where it lay, not what it is


class ModelAnswerer:
    """Asks a PAL model.

    Args:
        model: in eval mode.
        processor: the model's.
        name: for the report.
        frames: of frozen encoders, read instead of sound where the sound is the item's own.
    """

    def __init__(
        self, model: PalForConditionalGeneration, processor: PalProcessor, name: str, frames: FrameCache | None = None
    ) -> None:
        self.model, self.processor, self.name, self.frames = model, processor, name, frames
        tokenizer = processor.tokenizer
        words = json.dumps([sorted(tokenizer.get_vocab().items()), processor.chat_template or tokenizer.chat_template])
        parts = [_portable(model.config.to_dict()), _portable(model.generation_config.to_dict())]
        self.fingerprint = fingerprint(
            [model], [*parts, hashlib.sha256(words.encode()).hexdigest(), None if frames is None else frames.dtype]
        )
        self._silences: dict[tuple[int, ...], ClipFeatures] = {}

    def rendered(self, prompt: Sequence[Message]) -> str:
        silent = ClipFeatures({}, {})
        conversation = [_filled(message, itertools.repeat(silent)) for message in prompt]
        text: str = self.processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        return text

    # ---- sound ----------------------------------------------------------------------------------------------------

    def hear(self, clip: Sequence[AudioPart]) -> ClipFeatures:
        if len(clip) > 1:
            return self._of_waves({rate: _joined(clip, rate) for rate in self.processor.sampling_rates_hz})
        part = clip[0]
        if self.frames is not None:
            if not Path(part.path).is_file():
                raise AudioError(f"{part.path}: no such file")
            return ClipFeatures(self.frames.read(part), self.frames.num_samples(part))
        return self.processor.clip(part.path, start_s=part.start_s, end_s=part.end_s)

    def too_long(self, heard: Sequence[ClipFeatures], prompt: list[Message]) -> str:
        limit = max_span(self.model.language_model.config.get_text_config())
        if limit is None:
            return ""
        num_sound = sum(self.model.config.audio.span(clip.num_samples) for clip in heard)
        text = self.rendered(prompt)
        if len(text.encode()) + num_sound <= limit:  # a text has no more tokens than bytes
            return ""
        num_text = len(self.processor.tokenizer(text, add_special_tokens=False)["input_ids"])
        if num_text + num_sound <= limit:
            return ""
        return (
            f"takes {num_text + num_sound} positions with its question ({num_text} of text, {num_sound} of sound) but the "
            f"language model was trained on {limit}; shorten the clip or the question"
        )

    def silence(self, heard: ClipFeatures) -> ClipFeatures:
        key = tuple(heard.num_samples.values())
        if key not in self._silences:
            self._silences[key] = self._made(heard, lambda num_samples: np.zeros(num_samples, dtype=np.float32))
        return self._silences[key]

    def noise(self, heard: ClipFeatures, seed: int) -> ClipFeatures:
        def wave(num_samples: int) -> np.ndarray:
            return (NOISE_RMS * np.random.default_rng(seed).standard_normal(num_samples)).astype(np.float32)

        return self._made(heard, wave)

    def _made(self, heard: ClipFeatures, wave: Any) -> ClipFeatures:
        features = {name: self.processor.front_ends[name](wave(num)) for name, num in heard.num_samples.items()}
        return ClipFeatures(features, heard.num_samples)

    def _of_waves(self, waves: dict[int, np.ndarray]) -> ClipFeatures:
        """Features of a clip that is known as a wave by rate."""
        clips = {rate: self.processor.clip(wave, sampling_rate=rate) for rate, wave in waves.items()}
        rate_of = {name: config.sampling_rate_hz for name, config in self.model.config.audio.encoders.items()}
        features = {name: clips[rate].features[name] for name, rate in rate_of.items()}
        return ClipFeatures(features, {name: clips[rate].num_samples[name] for name, rate in rate_of.items()})

    @torch.inference_mode()
    def listen(self, heard: Sequence[Sequence[ClipFeatures]]) -> ModelBatch:
        clips = [clip for item in heard for clip in item]
        different = list({id(clip): clip for clip in clips}.values())  # several questions about a clip, or one silence for all
        memory = None
        if clips:
            memory = self.model.encode_audio(**self.processor.collate_clips(different))
            number_of = {id(clip): number for number, clip in enumerate(different)}
            if len(different) < len(clips):
                numbers = [number_of[id(clip)] for clip in clips]
                memory = memory.select(torch.tensor(numbers, device=self.model.device))
        return ModelBatch(self.model, self.processor, [list(item) for item in heard], memory)


class ModelBatch:
    """A batch's sound in a model's memory."""

    def __init__(
        self,
        model: PalForConditionalGeneration,
        processor: PalProcessor,
        heard: list[list[ClipFeatures]],
        memory: AudioMemory | None,
    ) -> None:
        self.model, self.processor, self.heard, self.memory = model, processor, heard, memory

    @torch.inference_mode()
    def generate(self, prompts: Sequence[list[Message]], max_new_tokens: int) -> list[str]:
        inputs = self._inputs(prompts)
        output = self.model.generate(
            **inputs, audio_memory=self.memory, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1
        )
        new_tokens = output[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.processor.tokenizer.batch_decode(new_tokens, skip_special_tokens=True)]

    @torch.inference_mode()
    def rank(self, prompts: Sequence[list[Message]], choices: Sequence[list[str]]) -> list[list[float]]:
        inputs = self._inputs(prompts)
        ids_BL, mask_BL = inputs["input_ids"], inputs["attention_mask"]
        context = None if self.memory is None else self.model.attach(self.memory, ids_BL, mask_BL)
        first = self.model(**inputs, audio_memory=context, use_cache=True, logits_to_keep=1)
        cache, last_BV = first.past_key_values, first.logits[:, -1]
        cache.pal_audio = None  # each chunk of rows brings its own
        pairs = [
            (row, tokens)
            for row, (prompt, of_prompt) in enumerate(zip(prompts, choices, strict=True))
            for tokens in self._continuations(prompt, of_prompt)
        ]
        scores: list[float] = []
        step = ROWS_PER_PROMPT * len(prompts)
        for start in range(0, len(pairs), step):
            chunk = pairs[start : start + step]
            rows_N = torch.tensor([row for row, _ in chunk], device=self.model.device)
            rows_cache = copy.deepcopy(cache)
            rows_cache.batch_select_indices(rows_N)
            rows_context = None if context is None else context.select(rows_N)
            tokens = [tokens for _, tokens in chunk]
            scores += self._scores(tokens, last_BV[rows_N], mask_BL[rows_N], rows_cache, rows_context)
        numbers = iter(scores)
        return [[next(numbers) for _ in of_prompt] for of_prompt in choices]

    def _scores(self, tokens: list[list[int]], last_NV: Tensor, mask_NL: Tensor, cache: Any, context: Any) -> list[float]:
        """Mean log-probability of each row's tokens behind its cached prompt, whose last logits are `last_NV`."""
        longest = max(len(row) for row in tokens)
        ids_NL = torch.zeros(len(tokens), longest, dtype=torch.int64)
        shown_NL = torch.zeros(len(tokens), longest, dtype=mask_NL.dtype)
        for number, row in enumerate(tokens):
            ids_NL[number, : len(row)] = torch.tensor(row)
            shown_NL[number, : len(row)] = 1
        ids_NL, shown_NL = ids_NL.to(mask_NL.device), shown_NL.to(mask_NL.device)
        logits = last_NV[:, None]
        if longest > 1:  # the last token needs no forward: nothing follows it
            mask = torch.cat([mask_NL, shown_NL[:, :-1]], dim=1)
            more = self.model(ids_NL[:, :-1], attention_mask=mask, past_key_values=cache, audio_memory=context, use_cache=True)
            logits = torch.cat([logits, more.logits], dim=1)
        log_NL = logits.float().log_softmax(-1).gather(-1, ids_NL[..., None])[..., 0]
        means = (log_NL * shown_NL).sum(1) / shown_NL.sum(1)
        return [float(mean) for mean in means]

    def _continuations(self, prompt: list[Message], choices: Sequence[str]) -> list[list[int]]:
        """Tokens that the chat template puts behind a prompt for each answer.

        Raises:
            PalError: the template writes a prompt otherwise when an answer follows.
        """
        plain: list[dict[str, Any]] = [{"role": message.role, "content": message.text} for message in prompt]
        render = self.processor.apply_chat_template
        before = render(plain, add_generation_prompt=True, tokenize=False)
        whole = render([*plain, {"role": "assistant", "content": _ANSWER}], tokenize=False).rstrip()
        head, found, tail = whole.removeprefix(before).rpartition(_ANSWER)
        if not whole.startswith(before) or not found:
            raise PalError(
                "the chat template writes the prompt otherwise when an answer follows, so choices cannot be ranked behind it; "
                "use --method generate"
            )
        tokenizer = self.processor.tokenizer
        return [tokenizer(f"{head}{choice}{tail}", add_special_tokens=False)["input_ids"] for choice in choices]

    def _inputs(self, prompts: Sequence[list[Message]]) -> dict[str, Tensor]:
        """Tokens of the prompts, padded left; of sound only the places, since it is in the memory."""
        conversations = []
        for prompt, heard in zip(prompts, self.heard, strict=True):
            clips = iter(heard)
            conversations.append([_filled(message, clips) for message in prompt])
        inputs = self.processor.apply_chat_template(conversations, add_generation_prompt=True)
        return {name: inputs[name].to(self.model.device) for name in ("input_ids", "attention_mask")}


def _filled(message: Message, clips: Any) -> dict[str, Any]:
    content: list[dict[str, Any]] = []
    for part in message.parts:
        if isinstance(part, AudioPart):
            content.append({"type": "audio", "audio": next(clips)})
        else:
            content.append({"type": "text", "text": part.text})
    return {"role": message.role, "content": content}


def _joined(clip: Sequence[AudioPart], rate_hz: int) -> np.ndarray:
    """Stretches of sound one after another with pauses between them."""
    pause = np.zeros(round(PAUSE_S * rate_hz), dtype=np.float32)
    waves: list[np.ndarray] = []
    for part in clip:
        waves += [load_audio(part.path, rate_hz, start_s=part.start_s, end_s=part.end_s), pause]
    return np.concatenate(waves[:-1])


def _portable(config: Any) -> Any:
    """A configuration without what says where it lay."""
    if isinstance(config, dict):
        return {key: _portable(value) for key, value in config.items() if key not in _OF_THE_PLACE}
    return [_portable(value) for value in config] if isinstance(config, list) else config
