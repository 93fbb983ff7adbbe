"""What a recipe's model is built as, and what of it a finished run leaves: the whole model, its LLM alone, encoders alone."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pal_audio.data.manifest import Example
from pal_audio.encoders import AudioEncoder
from pal_audio.model import PalForConditionalGeneration, PalProcessor, build_model
from pal_audio.model.building import build_processor, skeleton
from pal_audio.model.export import save_encoder, save_folder, save_llm, save_trained
from pal_audio.model.parts import Parts, PartsProcessor, build_parts, parts_processor, parts_skeleton
from pal_audio.model.trained import bases_of
from pal_audio.training.memory import Device
from pal_audio.training.objectives import Objective
from pal_audio.training.recipe import Recipe

Model = PalForConditionalGeneration | Parts
Processor = PalProcessor | PartsProcessor


def build(recipe: Recipe, texts: Iterable[str]) -> tuple[Model, Processor]:
    """A recipe's model and processor: whole where it has streams, else the parts that it names."""
    if recipe.model.is_whole:
        return build_model(recipe.model, texts, recipe.adapter)
    return build_parts(recipe.model, texts, recipe.adapter)


def outline(recipe: Recipe) -> Model:
    """The model without memory; see `build`."""
    if recipe.model.is_whole:
        return skeleton(recipe.model, recipe.adapter)
    return parts_skeleton(recipe.model, recipe.adapter)


def processor_of(recipe: Recipe, texts: Iterable[str] = ()) -> Processor:
    """The processor alone; see `build`."""
    return build_processor(recipe.model, texts) if recipe.model.is_whole else parts_processor(recipe.model, texts)


def hear_on(processor: Processor, model: Model, device: Device) -> None:
    """Let a processor give the model's encoders what they take on the device that trains; see `EncoderConfig.front_end_for`."""
    where = torch.device(device.type)
    processor.front_ends = {name: encoder.config.front_end_for(where) for name, encoder in model.encoders.items()}


def save_results(
    folder: Path, recipe: Recipe, model: Model, processor: Processor, objectives: Iterable[Objective[Any]]
) -> list[str]:
    """Write what the run has made into its folder.

    Args:
        folder: of the run.
        recipe: says what its stages trained.
        model: as it is at the end. An adapter is merged after the whole model was saved.
        processor: its own.
        objectives: of its stages.

    Returns:
        A line for each thing, with the key by which a later recipe names it.
    """
    lines = []
    if isinstance(model, PalForConditionalGeneration):
        assert isinstance(processor, PalProcessor)
        if recipe.save == "trained":
            bases = bases_of(recipe.model.llm, recipe.model.revision, recipe.model.audio_config())
            save_trained(model, processor, folder / "final", bases, _trained(model, objectives))
        else:
            save_folder(model, processor, folder / "final")
        lines.append(f"model: {folder / 'final'}")
    for name in dict.fromkeys(stage.encoder or next(iter(model.encoders)) for stage in recipe.stages if stage.of_encoder):
        encoder = model.encoders[name]
        assert isinstance(encoder, AudioEncoder)
        (folder / "encoders").mkdir(exist_ok=True)
        save_encoder(encoder, folder / "encoders" / name)
        lines.append(f"encoder: {{type: {encoder.config.type}, checkpoint: {folder / 'encoders' / name}, frozen: true}}")
    if any(stage.objective == "text" for stage in recipe.stages):
        assert processor.tokenizer is not None
        save_llm(model.language_model, processor.tokenizer, folder / "llm")
        lines.append(f"llm: {folder / 'llm'}")
    return lines


def _trained(model: PalForConditionalGeneration, objectives: Iterable[Objective[Any]]) -> list[nn.Parameter]:
    """Parameters that a stage has trained."""
    trained: list[nn.Parameter] = []
    for objective in objectives:
        objective.parameter_groups()
        trained += [parameter for parameter in model.parameters() if parameter.requires_grad]
    return trained


def score_lines(stage_scores: Sequence[dict[str, Any]]) -> list[str]:
    """Held-out scores of stages, a line each."""
    return [
        f"stage {item['stage']}: " + ", ".join(f"{name} {value:.4g}" for name, value in item["scores"].items())
        for item in stage_scores
    ]


def texts_of(examples: Sequence[Example]) -> list[str]:
    """All text of examples, documents among them: what a fresh tokenizer is trained on."""
    return [message.text for example in examples for message in example.messages]
