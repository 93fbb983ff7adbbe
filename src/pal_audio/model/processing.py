"""`PalProcessor`: chat messages and sound -> what the model takes. It holds no weights and fetches nothing by itself.

    messages ── chat template ── text with markers ── slots written behind each marker ── input_ids
    sound ── load_audio at each encoder's rate ── front end ── input_features, audio_num_samples

Shapes: B rows, L text tokens, C clips, W encoder windows.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerBase
from transformers.processing_utils import ProcessorMixin

from pal_audio.audio import load_audio
from pal_audio.encoders.base import Frames
from pal_audio.errors import PalError
from pal_audio.model.clips import ClipFeatures, check_clip, collate, sources_of
from pal_audio.model.configuration import MARKER_TOKEN, SLOT_TOKEN, AudioConfig
from pal_audio.model.messages import Conversation, assistant_spans, flatten
from pal_audio.model.text_rows import pad, tokenise


class PalProcessor(ProcessorMixin):
    """Text and sound to model inputs.

    Args:
        tokenizer: the LLM's; marker and slot token are added to it if it lacks them (no row of the LLM is needed).
        audio_config: the model's `AudioConfig` or its dict: rates, windows and lengths come from it.
        chat_template: overrides the tokenizer's.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        audio_config: AudioConfig | dict[str, Any] | None = None,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        if tokenizer is None or audio_config is None:
            raise PalError("PalProcessor needs a tokenizer and an audio_config")
        # Encoders' weights are the model's; a processor must not need their checkpoint to know their lengths.
        self._audio = AudioConfig.parse(audio_config)
        self.audio_config = self._audio.model_dump(mode="json")
        self.front_ends = {name: config.front_end() for name, config in self._audio.encoders.items()}
        super().__init__(tokenizer, chat_template=chat_template)
        missing = [token for token in (MARKER_TOKEN, SLOT_TOKEN) if token not in tokenizer.get_vocab()]
        if missing:
            tokenizer.add_special_tokens({"additional_special_tokens": missing}, replace_extra_special_tokens=False)
        self.audio_token, self.audio_slot_token = MARKER_TOKEN, SLOT_TOKEN
        self.audio_token_id = tokenizer.convert_tokens_to_ids(MARKER_TOKEN)
        self.audio_slot_token_id = tokenizer.convert_tokens_to_ids(SLOT_TOKEN)

    def to_dict(self) -> dict[str, Any]:
        """What `processor_config.json` holds: the audio configuration; everything else follows from it."""
        return {"audio_config": self.audio_config, "processor_class": type(self).__name__}

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "input_features", "audio_num_samples"]

    # ---- sound ----------------------------------------------------------------------------------------------------

    def clip(self, source: Any, sampling_rate: int | None = None, **options: Any) -> ClipFeatures:
        """Features of one clip for every encoder.

        Args:
            source: anything `load_audio` reads, or a `ClipFeatures` (given back as it is).
            sampling_rate: of an array, Hz.
            **options: of `load_audio`: `start_s`, `end_s`, `allow_url`, limits.

        Raises:
            AudioError: the sound cannot be read.
        """
        if isinstance(source, ClipFeatures):
            check_clip(source, self.front_ends)
            return source
        known = {"array", "bytes", "path"}
        if isinstance(source, Mapping) and source.keys() & self.front_ends.keys() and not source.keys() & known:
            raise PalError("one sound for all encoders: give the clip itself, not a dict of sounds by encoder name")
        if isinstance(source, Tensor):
            source = source.detach().cpu().numpy()
        if isinstance(source, np.ndarray):  # a file knows its own rate
            if sampling_rate is None:
                raise PalError(
                    f"an audio array needs its rate: pass sampling_rate=, this model hears at {self.sampling_rates_hz} Hz"
                )
            options["source_rate_hz"] = sampling_rate
        waves: dict[int, np.ndarray] = {}
        features: dict[str, Tensor | Frames] = {}
        num_samples = {}
        for name, config in self._audio.encoders.items():
            rate_hz = config.sampling_rate_hz
            if rate_hz not in waves:
                waves[rate_hz] = load_audio(source, rate_hz, **options)
            features[name] = self.front_ends[name](waves[rate_hz])
            num_samples[name] = len(waves[rate_hz])
        return ClipFeatures(features, num_samples)

    @property
    def sampling_rates_hz(self) -> list[int]:
        """Rates of the encoders, without repetition."""
        return sorted({config.sampling_rate_hz for config in self._audio.encoders.values()})

    def num_slots(self, clip: ClipFeatures) -> int:
        """PLITS tokens that a clip takes in the text."""
        return self._audio.num_slots(clip.num_samples)

    def collate_clips(self, clips: Sequence[ClipFeatures]) -> dict[str, Any]:
        """`input_features` and `audio_num_samples` of clips in reading order; dicts where there are several encoders.

        Raises:
            PalError: a clip lacks an encoder, or some clips hold frames and others features.
        """
        return collate(clips, self.front_ends)

    # ---- text -----------------------------------------------------------------------------------------------------

    def __call__(
        self,
        text: str | list[str],
        audio: Any = None,
        sampling_rate: int | None = None,
        padding_side: str = "left",
        add_special_tokens: bool = True,
        max_length: int | None = None,
        supervised_spans: list[list[tuple[int, int]]] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Tokenise text and prepare its clips.

        Args:
            text: one text or B texts; every `<|audio|>` in it stands for one clip.
            audio: the clips of all texts in reading order (one source, or a list of them); see `clip`.
            sampling_rate: of arrays, Hz.
            padding_side: "left" to generate, "right" to train.
            max_length: most tokens of a row, slots included; a longer one is an error, nothing is cut.
            supervised_spans: for each text, character ranges that get labels (see `apply_chat_template`).

        Returns:
            input_ids, attention_mask (B, L); with clips input_features and audio_num_samples; with spans labels (B, L).

        Raises:
            PalError: markers and clips do not match, or a row is too long.
            AudioError: a sound cannot be read.
        """
        _refuse_unknown(kwargs)
        texts = [text] if isinstance(text, str) else list(text)
        if not texts:
            raise PalError("no text was given")
        clips = [self.clip(item, sampling_rate) for item in sources_of(audio)]
        counts = [item.count(MARKER_TOKEN) for item in texts]
        if sum(counts) != len(clips):
            where = f" (per text: {counts})" if len(texts) > 1 else ""
            raise PalError(f"the text holds {sum(counts)} {MARKER_TOKEN} markers{where} but {len(clips)} clips were given")
        rows, slots = [], iter([self.num_slots(clip) for clip in clips])
        for number, item in enumerate(texts):
            spans = supervised_spans[number] if supervised_spans is not None else []
            rows.append(tokenise(self.tokenizer, item, slots, spans, add_special_tokens))
        longest = max(len(ids) for ids, _ in rows)
        if max_length is not None and longest > max_length:
            row = next(number for number, (ids, _) in enumerate(rows) if len(ids) > max_length)
            raise PalError(f"text {row} has {len(rows[row][0])} tokens, slots included, over max_length {max_length}; shorten it")
        data: dict[str, Any] = pad(rows, longest, padding_side, self._pad_id)
        if supervised_spans is None:
            del data["labels"]
        if clips:
            data |= self.collate_clips(clips)
        return BatchFeature(data)

    def apply_chat_template(  # type: ignore[override]
        self,
        conversation: Conversation | list[Conversation],
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        return_dict: bool = True,
        return_tensors: str = "pt",
        return_labels: bool = False,
        sampling_rate: int | None = None,
        padding_side: str | None = None,
        allow_url: bool = False,
        max_length: int | None = None,
        **template_kwargs: Any,
    ) -> Any:
        """Render chat messages by the LLM's own template, with clips where their parts stand.

        Args:
            conversation: messages, or a list of conversations. A message's content is text or parts:
                `{"type": "text", "text": ...}`, `{"type": "audio", "path" | "audio" | "url": ..., "start_s", "end_s"}`.
            return_labels: also give `labels` over exactly the assistant's turns (training; pads right).
            padding_side: default "left", with labels "right".
            allow_url: let a clip's source be an https address.
            **template_kwargs: for the template.

        Returns:
            `BatchFeature` as `__call__` gives it; with `tokenize=False` the text, or the list of texts.

        Raises:
            PalError: a part or role is not understood, or the template does not let the answers be found.
        """
        if not return_dict or return_tensors != "pt":
            raise PalError("PalProcessor gives a dict of PyTorch tensors: leave return_dict=True and return_tensors='pt'")
        if not isinstance(conversation, list) or not conversation:
            raise PalError(
                "a conversation is a list of messages, a batch a list of conversations; at least one message is needed"
            )
        single = isinstance(conversation[0], dict)
        conversations: list[Conversation] = [conversation] if single else conversation  # type: ignore[list-item,assignment]
        template = {"chat_template": chat_template or self.chat_template, **template_kwargs}
        texts, spans, clips = [], [], []
        for messages in conversations:
            flat, sources = flatten(messages)
            texts.append(self._render(flat, add_generation_prompt, template))
            if texts[-1].count(MARKER_TOKEN) != len(sources):
                raise PalError(
                    f"the chat template wrote {texts[-1].count(MARKER_TOKEN)} markers for {len(sources)} clips; "
                    "it must write each message's content as text, with one marker for each clip"
                )
            if tokenize:
                clips += [self.clip(source, sampling_rate, allow_url=allow_url, **cut) for source, cut in sources]
            if return_labels:
                spans.append(assistant_spans(flat, texts[-1], partial(self._render, template=template)))
        if not tokenize:
            return texts[0] if single else texts
        side = padding_side or ("right" if return_labels else "left")
        return self(
            texts,
            clips,
            None,
            side,
            add_special_tokens=False,
            max_length=max_length,
            supervised_spans=spans if return_labels else None,
        )

    def _render(self, messages: Conversation, add_generation_prompt: bool, template: dict[str, Any]) -> str:
        if template.get("chat_template") is None and self.tokenizer.chat_template is None:
            raise PalError("the tokenizer has no chat template; pass chat_template=, or call the processor with plain text")
        return self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt, **template
        )

    @property
    def _pad_id(self) -> int:
        ids = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(token for token in ids if token is not None)


def _refuse_unknown(kwargs: dict[str, Any]) -> None:
    # transformers' own callers pass these; they say what is done anyway.
    allowed = {"return_tensors": "pt", "padding": True, "truncation": False}
    for key, value in kwargs.items():
        if key not in allowed:
            raise PalError(f"PalProcessor has no option {key!r}")
        if value != allowed[key]:
            raise PalError(f"PalProcessor: {key}={value!r} is not supported, only {allowed[key]!r}")
