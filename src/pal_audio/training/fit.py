"""What cannot fit is refused in one line, before it costs an hour: memory, disk, the LLM's context."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from pal_audio.data.collation import Collator
from pal_audio.data.manifest import Example
from pal_audio.errors import PalError
from pal_audio.integration.key_values import max_span
from pal_audio.model import PalForConditionalGeneration, PalProcessor
from pal_audio.training.batches import ExampleBatches
from pal_audio.training.memory import Device, held_memory, sharded_memory, size_text
from pal_audio.training.objectives import OBJECTIVES
from pal_audio.training.objectives.encoder import EncoderObjective
from pal_audio.training.outcome import Model, Processor
from pal_audio.training.plan import PlannedStage, num_shards_of, stage_memory
from pal_audio.training.plan_table import Plan
from pal_audio.training.recipe import Recipe
from pal_audio.training.rows import rendered, text_tokens


def check_memory(recipe: Recipe, skeleton: Model, collator: Collator, device: Device) -> None:
    """That weights, gradients and moments of every stage fit the device; activations depend on the batch and are not asked.

    Args:
        recipe: resolved.
        skeleton: the model without memory, so that this comes before weights are loaded.
        collator: for the objectives; makes no batch.
        device: where it will train.

    Raises:
        PalError: the first stage that cannot fit, with its numbers and what would help.
    """
    num = num_shards_of(recipe)
    for stage, objective in [(stage, OBJECTIVES[stage.objective](skeleton, collator, stage)) for stage in recipe.stages]:
        if isinstance(objective, EncoderObjective):  # its head is small, and made when the data are known
            objective.train_encoder()
            memory = sharded_memory(objective.encoder, held_memory(objective.encoder), num, recipe.precision)
        else:
            memory = stage_memory(objective, recipe.precision, num)
        if memory.held <= device.memory:
            continue
        numbers = ", ".join(f"{size_text(getattr(memory, kind))} {kind}" for kind in ("weights", "gradients", "optimizer"))
        if memory.weights > device.memory:
            mend = "the weights alone are too large: take a smaller language model or encoder"
        else:
            mend = "train an adapter (`adapter:` and the part llm.adapter) or fewer parts, or take a smaller model"
        raise PalError(
            f"stage {stage.name!r} needs {size_text(memory.held)} without any batch ({numbers}, in float32, which precision "
            f"bfloat16 does not change), but {device.name} has {size_text(device.memory)}; {mend}"
        )


def check_disk(folder: Path, plan: Plan) -> None:
    """That the checkpoints of the run fit on the disk, those counted that are there already.

    Raises:
        PalError: they do not.
    """
    held = sum(file.stat().st_size for file in folder.glob("checkpoints-*/*/*") if file.is_file())
    disk = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    free = shutil.disk_usage(disk).free + held
    if plan.disk_bytes > free:
        raise PalError(
            f"{folder}: checkpoints take up to {size_text(plan.disk_bytes)} but {size_text(free)} are free; make room, choose "
            "another disk with --out, or train fewer parts (their moments are saved too)"
        )


def check_context(model: Model, processor: Processor, stages: Sequence[PlannedStage], collator: Collator) -> None:
    """That no example is longer than what the LLM was trained on.

    A text has no more tokens than bytes, so that only long examples are counted exactly.

    Raises:
        PalError: the first that is longer, with its numbers.
    """
    if not isinstance(model, PalForConditionalGeneration):
        return
    assert isinstance(processor, PalProcessor)
    limit = max_span(model.language_model.config.get_text_config())
    if limit is None:
        return
    for planned in stages:
        if not isinstance(planned.batches, ExampleBatches) or planned.stage.objective != "answer":
            continue
        batches = planned.batches
        examples = batches.examples
        first = examples[0]
        template = (len(rendered(processor, first).encode()) - _content(first)) / len(first.messages)
        for example, size in zip(examples, batches.order.sizes, strict=True):
            seconds = size.audio_s * 1.05 + 1  # headers may be a little wrong
            at_most = (
                _content(example) + (template + 16) * len(example.messages) + _positions_of(model, seconds, len(example.audio))
            )
            if at_most > limit:
                _count(model, processor, collator, example, limit, planned.stage.name)


def _content(example: Example) -> int:
    return sum(len(message.text.encode()) for message in example.messages)


def _positions_of(model: PalForConditionalGeneration, audio_s: float, num_clips: int) -> int:
    """Positions of clips that last `audio_s` together, at most."""
    samples = {name: round(audio_s * config.sampling_rate_hz) for name, config in model.config.audio.encoders.items()}
    return num_clips * _span(model, samples)


def _span(model: PalForConditionalGeneration, samples: dict[str, int]) -> int:
    """Positions that a clip takes behind its marker."""
    audio = model.config.audio
    slots = audio.num_slots(samples)
    if audio.positions == "zero":
        return slots
    return max(slots, *(audio.stream_length(stream, samples) for stream in audio.streams))


def _count(
    model: PalForConditionalGeneration, processor: PalProcessor, collator: Collator, example: Example, limit: int, stage: str
) -> None:
    spans = sum(_span(model, collator.clip(part).num_samples) for part in example.audio)
    num_text = text_tokens(processor, example)
    if num_text + spans > limit:
        zero = "" if model.config.audio.positions == "zero" else ", or write `positions: zero`"
        raise PalError(
            f"stage {stage!r}: example {example.id!r} takes {num_text + spans} positions ({num_text} of text, {spans} of sound) "
            f"but the language model was trained on {limit}; shorten it, give the connector fewer tokens{zero}"
        )
