"""How large an example's row is, from its text, the length of its sound and the configuration; no sound is read."""

from dataclasses import replace
from typing import Any

from pal_audio.data.manifest import AudioPart, Example
from pal_audio.model import PalForConditionalGeneration, PalProcessor
from pal_audio.training.batches import ExampleBatches, Size
from pal_audio.training.memory import Row
from pal_audio.training.objectives import Objective
from pal_audio.training.objectives.encoder import EncoderObjective
from pal_audio.training.outcome import Model, Processor
from pal_audio.training.recipe import Stage


def largest_row(model: PalForConditionalGeneration, processor: PalProcessor, example: Example, audio_s: float) -> Row:
    """Sizes of an example whose clips last `audio_s` seconds together, taken as one clip; no sound is read."""
    audio = model.config.audio
    samples = {name: round(audio_s * config.sampling_rate_hz) for name, config in audio.encoders.items()}
    num_text = text_tokens(processor, example)
    num_logits = min(num_text, 2 + len(processor.tokenizer(example.answer or "", add_special_tokens=False)["input_ids"]))
    if not example.audio:
        num_key_streams = sum(stream.integration.type != "plits" for stream in audio.streams)
        return Row(num_text, num_logits, 0, (0,) * num_key_streams, {})
    lengths = [(stream.integration.type, audio.stream_length(stream, samples)) for stream in audio.streams]
    frames = {name: config.output_lengths(samples[name]) for name, config in audio.encoders.items()}
    keys = tuple(length for kind, length in lengths if kind != "plits")
    return Row(num_text, num_logits, sum(length for kind, length in lengths if kind == "plits"), keys, frames)


def row_of(
    objective: Objective[Any], stage: Stage, batches: ExampleBatches, model: Model, processor: Processor
) -> tuple[Row, float]:
    """The largest row of a stage whose items are all at hand, and its seconds of sound."""
    longest = max(range(len(batches.order.sizes)), key=lambda number: _length(batches.order.sizes[number]))
    size, streams = batches.order.sizes[longest], getattr(model, "streams", ())
    if stage.objective == "text":
        return Row(size.num_tokens, size.num_tokens, 0, (0,) * sum(item.gives_keys for item in streams), {}), 0.0
    if isinstance(objective, EncoderObjective):
        config = objective.encoder.config
        frames = config.output_lengths(round(size.audio_s * config.sampling_rate_hz))
        return Row(0, 0, 0, (), {objective.name: frames}), size.audio_s
    assert isinstance(model, PalForConditionalGeneration)
    assert isinstance(processor, PalProcessor)
    row = largest_row(model, processor, batches.examples[longest], size.audio_s)
    return (row if stage.packing else replace(row, num_logits=row.num_text + row.num_slots)), size.audio_s


def _length(size: Size) -> tuple[float, int]:
    return size.audio_s, size.num_tokens


def text_tokens(processor: PalProcessor, example: Example) -> int:
    """Tokens of an example's text with its markers, without slots; no sound is read."""
    return len(processor.tokenizer(rendered(processor, example), add_special_tokens=False)["input_ids"])


def rendered(processor: PalProcessor, example: Example) -> str:
    """An example as the chat template writes it."""
    messages: list[dict[str, Any]] = []
    for message in example.messages:
        parts: list[dict[str, Any]] = []
        for part in message.parts:
            if isinstance(part, AudioPart):
                parts.append({"type": "audio", "path": part.path})
            else:
                parts.append({"type": "text", "text": part.text})
        messages.append({"role": message.role, "content": parts})
    text: str = processor.apply_chat_template(messages, tokenize=False)
    return text


def num_rows_of(stage: Stage, audio_s: float, row: Row) -> int:
    """Rows of the batch that holds the longest example."""
    limit = stage.limit
    if isinstance(limit, int):
        return limit
    by_sound = limit.audio_s / max(audio_s, 1e-9) if limit.audio_s is not None else float("inf")
    by_text = limit.text_tokens / (row.num_text + row.num_slots) if limit.text_tokens is not None else float("inf")
    return max(1, int(min(by_sound, by_text)))
