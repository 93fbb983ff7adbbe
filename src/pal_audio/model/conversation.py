"""A conversation about sound: every clip is encoded once, and the text cache is kept from turn to turn where it can be.

add(clip) ── encode once ── memory ─┐
ask(question) ── chat template ── ids ── common start with what the cache holds ── generate behind it
"""

from typing import Any

import torch
from torch import Tensor

from pal_audio.errors import PalError
from pal_audio.integration.memory import AudioMemory
from pal_audio.model.clips import ClipFeatures
from pal_audio.model.confidence import probability_of
from pal_audio.model.modeling import PalForConditionalGeneration
from pal_audio.model.processing import PalProcessor
from pal_audio.model.text_rows import tokenise


class Conversation:
    """Turns of questions and greedy answers, with clips added at any turn.

    Args:
        model: in eval mode.
        processor: the model's.
        system: text of a system message before everything, if any.

    Attributes:
        messages: the conversation so far, in chat form; an audio part holds its clip's length alone.
        memory: of all clips heard so far, those of the next turn included; None before the first.
        num_kept: tokens of the last question's text that came from the cache.
        probability: of the last answer, where it was asked for; see `model.confidence`.
    """

    def __init__(self, model: PalForConditionalGeneration, processor: PalProcessor, system: str | None = None) -> None:
        self.model, self.processor = model, processor
        self.messages: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
        self.memory: AudioMemory | None = None
        self.num_kept = 0
        self.probability: float | None = None
        self._answered: AudioMemory | None = None  # the memory at the last answer
        self._new: list[AudioMemory] = []
        self._cache: Any = None
        self._cached_ids: list[int] = []

    def add(self, source: Any, sampling_rate: int | None = None, **options: Any) -> None:
        """Encode a clip; it stands before the next question.

        Args:
            source, sampling_rate, **options: as in `PalProcessor.clip`.

        Raises:
            AudioError: the sound cannot be read.
            PalError: it alone takes more positions than the LLM has; the conversation is as it was before.
        """
        memory = self.model.encode_audio(**self.processor.collate_clips([self.processor.clip(source, sampling_rate, **options)]))
        self.memory = memory if self.memory is None else AudioMemory.concatenate([self.memory, memory])
        self._new.append(memory)

    def drop_new(self) -> int:
        """Take back the clips that were added since the last answer; returns how many."""
        num_dropped = len(self._new)
        self.memory, self._new = self._answered, []
        return num_dropped

    def ask(self, question: str, max_new_tokens: int = 256, streamer: Any = None, with_probability: bool = False) -> str:
        """The answer to a question, which becomes part of the conversation; its probability takes the logits of every step.

        Raises:
            PalError: the question is empty, or the conversation runs past the LLM's context under `span`. The conversation is
                as it was before.
        """
        if not question.strip():
            raise PalError("the question is empty")
        parts: list[dict[str, Any]] = [part for memory in self._new for part in clip_parts(memory)]
        turn = {"role": "user", "content": [*parts, {"type": "text", "text": question}]}
        ids = prompt_ids(self.processor, [*self.messages, turn])
        self.num_kept = self._keep(ids)
        cache, self._cache = self._cache, None  # generate changes it in place: after a failure it is of no use
        audio = self.memory if cache is None else AudioMemory.concatenate(self._new) if self._new else None
        output = self.model.generate(
            torch.tensor([ids], device=self.model.device), attention_mask=torch.ones(1, len(ids), dtype=torch.int64,
            device=self.model.device), audio_memory=audio, past_key_values=cache, max_new_tokens=max_new_tokens,
            do_sample=False, streamer=streamer, return_dict_in_generate=True, output_logits=with_probability,
        )  # fmt: skip
        self.probability = probability_of(output) if with_probability else None
        sequence = output.sequences[0].tolist()
        answer = str(self.processor.tokenizer.decode(sequence[len(ids) :], skip_special_tokens=True))
        self._cache = output.past_key_values
        self._cached_ids = sequence[: self._cache.get_seq_length()]
        self.messages += [turn, {"role": "assistant", "content": answer}]
        self._new, self._answered = [], self.memory
        return answer.strip()

    def _keep(self, ids: list[int]) -> int:
        """Make the cache hold a start of `ids`, or nothing; returns how many tokens that is.

        A template may write an earlier turn otherwise than it was generated (a think block left out): then what differs is
        taken out of the cache, where its layers allow that and no clip stands there; else the text is computed again.
        """
        if self._cache is None:
            return 0
        pairs = zip(self._cached_ids, ids[:-1], strict=False)
        same = next(
            (number for number, (one, other) in enumerate(pairs) if one != other), min(len(self._cached_ids), len(ids) - 1)
        )
        if same < len(self._cached_ids):
            audio = getattr(self._cache, "pal_audio", None)
            if any(self._cache.is_sliding) or (audio is not None and same < audio.prompt_BL.shape[1]):
                self._cache = None
                return 0
            self._cache.crop(same - len(self._cached_ids))  # negative: so many tokens less
        return same


def clip_parts(memory: AudioMemory) -> list[dict[str, Any]]:
    """Message parts that stand for a memory's clips: their lengths without their sound."""
    lengths = [{name: int(samples_C[clip]) for name, samples_C in memory.samples.items()} for clip in range(memory.num_clips)]
    return [{"type": "audio", "audio": ClipFeatures({}, samples)} for samples in lengths]


def prompt_ids(processor: PalProcessor, messages: list[dict[str, Any]]) -> list[int]:
    """Token ids of a conversation up to the next answer, markers and slots written; its clips need no sound (`clip_parts`)."""
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    clips = [part["audio"] for message in messages if isinstance(message["content"], list) for part in message["content"]
             if part["type"] == "audio"]  # fmt: skip
    return tokenise(processor.tokenizer, text, iter([processor.num_slots(clip) for clip in clips]), [], False)[0]


def answer_about(
    model: PalForConditionalGeneration, processor: PalProcessor, memory: AudioMemory, question: str, max_new_tokens: int = 64
) -> str:
    """The greedy answer to one question about all clips of a memory, in a text of its own."""
    turn = {"role": "user", "content": [*clip_parts(memory), {"type": "text", "text": question}]}
    ids: Tensor = torch.tensor([prompt_ids(processor, [turn])], device=model.device)
    output = model.generate(ids, audio_memory=memory, max_new_tokens=max_new_tokens, do_sample=False)
    return str(processor.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)).strip()
