"""What cannot fit is refused in one line, before it costs an hour: memory, disk, the LLM's context."""

import math
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


def check_context(
    model: Model, processor: Processor, stages: Sequence[PlannedStage], collator: Collator, held_out: Sequence[Example]
) -> None:
    """That no example is longer than what the LLM was trained on, those that are asked at the end too.

    A text has no more tokens than bytes, so that only long examples are counted exactly. The size of each held-out example is
    taken on the way, so that sound of no kind, or frames that a cache lacks, end the run now and not when it has been trained.

    Raises:
        PalError: the first that is longer, with its numbers, or whose sound or frames are not to be had.
    """
    answering = [planned for planned in stages if planned.stage.objective == "answer"]
    if not isinstance(model, PalForConditionalGeneration) or not answering:
        return
    assert isinstance(processor, PalProcessor)
    measured = [(f"stage {planned.stage.name!r}: example", planned.batches) for planned in answering]
    known = [(what, batches.examples, batches.order.sizes) for what, batches in measured if isinstance(batches, ExampleBatches)]
    known.append(("held-out example", held_out, [answering[0].objective.size(example) for example in held_out]))
    limit = max_span(model.language_model.config.get_text_config())
    if limit is None:
        return
    for what, examples, sizes in known:
        first = examples[0]
        template = (len(rendered(processor, first).encode()) - _content(first)) / len(first.messages)
        positions: dict[tuple[int, int], int] = {}
        for example, size in zip(examples, sizes, strict=True):
            clips = math.ceil(size.audio_s * 1.05 + 1), len(example.audio)  # headers may be a little wrong
            if clips not in positions:
                positions[clips] = _positions_of(model, *clips)
            at_most = _content(example) + (template + 16) * len(example.messages) + positions[clips]
            if at_most > limit:
                _count(model, processor, collator, example, limit, what)


def _content(example: Example) -> int:
    return sum(len(message.text.encode()) for message in example.messages)


def _positions_of(model: PalForConditionalGeneration, audio_s: float, num_clips: int) -> int:
    """Positions of clips that last `audio_s` together, at most."""
    samples = {name: round(audio_s * config.sampling_rate_hz) for name, config in model.config.audio.encoders.items()}
    return num_clips * model.config.audio.span(samples)


def _count(
    model: PalForConditionalGeneration, processor: PalProcessor, collator: Collator, example: Example, limit: int, what: str
) -> None:
    spans = sum(model.config.audio.span(collator.clip(part).num_samples) for part in example.audio)
    num_text = text_tokens(processor, example)
    if num_text + spans > limit:
        zero = "" if model.config.audio.positions == "zero" else ", or write `positions: zero`"
        raise PalError(
            f"{what} {example.id!r} takes {num_text + spans} positions ({num_text} of text, {spans} of sound) "
            f"but the language model was trained on {limit}; shorten it, give the connector fewer tokens{zero}"
        )
